//! Discovery on this machine. Skipped, and said so, where multicast does not work.

use std::time::Duration;

use shoal_core::NodeId;
use shoal_net::Role;
use shoal_net::discovery::{Advert, Discovery, Event};

#[tokio::test]
async fn nodes_of_one_machine_find_each_other_and_see_each_other_go() {
    let advert = |byte, role, authority: Option<&str>| Advert {
        node: NodeId([byte; 16]),
        role,
        authority: authority.map(str::to_owned),
        port: 4000 + u16::from(byte),
    };
    // Ids of this process, since other tests may be on the same network.
    let byte = std::process::id() as u8;
    let (one, two) = (
        advert(byte, Role::Coordinator, Some("0123456789abcdef")),
        advert(byte.wrapping_add(1), Role::Worker, None),
    );
    let (Ok(mut first), Ok(mut second)) = (Discovery::start(), Discovery::start()) else {
        return eprint("multicast DNS does not work on this machine");
    };
    first.advertise(&one).unwrap();
    second.advertise(&two).unwrap();
    let (mut from_first, mut from_second) = (first.browse().unwrap(), second.browse().unwrap());
    for (browser, wanted) in [(&mut from_first, &two), (&mut from_second, &one)] {
        let find = async {
            loop {
                match browser.next().await {
                    Some(Event::Found(found)) if found.node == wanted.node => break found,
                    Some(_) => {}
                    None => panic!("discovery has stopped"),
                }
            }
        };
        let Ok(found) = tokio::time::timeout(Duration::from_secs(10), find).await else {
            return eprint("no multicast packet arrives on this machine");
        };
        assert_eq!((found.role, &found.authority), (wanted.role, &wanted.authority));
        assert!(!found.addresses.is_empty());
        assert!(found.addresses.iter().all(|address| address.port() == wanted.port), "{found:?}");
    }
    second.shutdown();
    let lost = async {
        loop {
            match from_first.next().await {
                Some(Event::Lost(node)) if node == two.node => break,
                Some(_) => {}
                None => panic!("discovery has stopped"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), lost).await.expect("no goodbye was seen");
    assert!(format!("{first:?}").contains(&one.node.to_string()));
}

/// The other process of the test below: advertises until its standard input closes.
#[test]
fn advertiser() {
    let Ok(id) = std::env::var("SHOAL_TEST_ADVERTISE") else { return };
    let Ok(mut discovery) = Discovery::start() else { return };
    let node = id.parse().unwrap();
    discovery.advertise(&Advert { node, role: Role::Worker, authority: None, port: 4321 }).unwrap();
    std::io::Read::read_to_end(&mut std::io::stdin(), &mut Vec::new()).unwrap();
}

#[tokio::test]
async fn a_node_of_another_process_is_found() {
    let pid = std::process::id().to_le_bytes();
    let mut id = [0xa5; 16];
    id[..4].copy_from_slice(&pid);
    let node = NodeId(id);
    let mut other = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "advertiser"])
        .env("SHOAL_TEST_ADVERTISE", node.to_string())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let find = async {
        let discovery = Discovery::start().ok()?;
        let mut browser = discovery.browse().ok()?;
        loop {
            match browser.next().await? {
                Event::Found(found) if found.node == node => break Some(found),
                _ => {}
            }
        }
    };
    let found = tokio::time::timeout(Duration::from_secs(10), find).await;
    drop(other.stdin.take());
    assert!(other.wait().unwrap().success());
    match found {
        Ok(Some(found)) => assert!(found.addresses.iter().all(|address| address.port() == 4321), "{found:?}"),
        _ => eprint("no multicast packet arrives on this machine"),
    }
}

fn eprint(reason: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "skipped: {reason}");
}
