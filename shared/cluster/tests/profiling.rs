//! How a job gathers what its workers and links can do: what is asked, what is known, and whose figures are not taken.

use std::time::Duration;

use shoal_cluster::coordinator::{self, Action as Told, Config, Event as News, Job, Planning, State};
use shoal_cluster::cost::Link;
use shoal_cluster::planner::Options;
use shoal_core::message::{Answer, Failure, Order};
use shoal_core::profile::{DeviceProfile, LinkProfile};
use shoal_core::units::{BytesPerSec, Seconds};
use shoal_core::{Bytes, NodeId, Term};

mod common;

use common::{device, info, link, node, small, workload};

fn job(workers: usize, planning: Planning) -> Box<Job> {
    Box::new(Job {
        model: coordinator::nominal_model(),
        spec: small(),
        workload: workload(1),
        planning,
        workers,
        gather: Duration::from_millis(500),
        measure_links: false,
        links: Vec::new(),
        twins: false,
        profiles: Default::default(),
        power: Default::default(),
    })
}

/// Feeds answers until the machine has none to wait for: each worker says its profile, and `links` of those it is
/// asked for. What the machine said, and which orders went to whom.
fn measured(
    machine: &mut coordinator::Machine,
    profile: impl Fn(NodeId) -> Result<DeviceProfile, Failure>,
    links: impl Fn(NodeId, NodeId) -> LinkProfile,
) -> (Vec<Told>, Vec<(NodeId, usize)>) {
    let (mut said, mut asked) = (Vec::new(), Vec::new());
    while let Some(action) = machine.poll_action() {
        let answer = match &action {
            Told::Send { node, order: Order::Profile { .. } } => {
                asked.push((*node, 0));
                Some((*node, Answer::Profiled(profile(*node).map(Box::new))))
            }
            Told::Send { node, order: Order::Links { peers } } => {
                asked.push((*node, peers.len()));
                let links = peers.iter().map(|peer| links(*node, peer.node)).collect();
                Some((*node, Answer::LinksMeasured { links, failed: Vec::new() }))
            }
            _ => None,
        };
        if let Some((node, answer)) = answer {
            machine.handle_event(Duration::from_millis(1), News::Answer { node, answer });
        }
        said.push(action);
    }
    (said, asked)
}

fn started(workers: usize, change: impl FnOnce(&mut Job)) -> (coordinator::Machine, Vec<NodeId>) {
    let mut machine = coordinator::Machine::new(Config { term: Term(4), default_link: Link::LOOPBACK });
    let mut job = job(workers, Planning::Choose(Options::default()));
    job.measure_links = true;
    change(&mut job);
    machine.handle_event(Duration::ZERO, News::Start(job));
    let mut nodes: Vec<NodeId> = (0..workers).map(node).collect();
    nodes.sort();
    for &node in &nodes {
        let addresses = vec!["127.0.0.1:1".to_owned()];
        machine.handle_event(Duration::ZERO, News::Connected { info: Box::new(info(node)), addresses });
    }
    (machine, nodes)
}

fn sound(_: NodeId) -> Result<DeviceProfile, Failure> {
    Ok(device(0, 1.0, Bytes(1)).profile)
}

fn left_out(said: &[Told]) -> Vec<(NodeId, &str)> {
    said.iter()
        .filter_map(|told| {
            if let Told::LeftOut(left) = told { Some((left.node, left.reason.as_str())) } else { None }
        })
        .collect()
}

#[test]
fn of_twins_one_measures_for_all_and_one_pair_its_link() {
    let (mut machine, nodes) = started(3, |job| job.twins = true);
    let (said, asked) = measured(&mut machine, sound, link);
    assert_eq!(asked, [(nodes[0], 0), (nodes[0], 1)]);
    let profiled = said.iter().filter(|told| matches!(told, Told::Profiled { .. })).count();
    let links =
        said.iter().find_map(|t| if let Told::LinksMeasured { links, .. } = t { Some(links) } else { None });
    assert_eq!((profiled, links.map(Vec::len)), (3, Some(6)));
    assert_eq!(machine.state(), State::Loading);

    // When the first cannot, the next does.
    let (mut machine, nodes) = started(3, |job| job.twins = true);
    let broken = Failure { message: "no threads".to_owned(), blame: None };
    let first = nodes[0];
    let profile = |node| if node == first { Err(broken.clone()) } else { sound(node) };
    let (said, asked) = measured(&mut machine, profile, link);
    assert_eq!(asked[..2], [(nodes[0], 0), (nodes[1], 0)]);
    assert_eq!(left_out(&said), [(nodes[0], "no threads")]);
    assert_eq!(machine.state(), State::Loading);
}

#[test]
fn what_is_known_is_not_measured_again() {
    let mut nodes: Vec<NodeId> = (0..3).map(node).collect();
    nodes.sort();
    let profile = device(0, 1.0, Bytes(1)).profile;
    let mut corrupt = profile.clone();
    corrupt.phase_overhead.median = Seconds(f64::NAN);
    let mut bad_link = link(nodes[1], nodes[2]);
    bad_link.figures.bandwidth.median = BytesPerSec(-1.0);
    let (mut machine, nodes) = started(3, |job| {
        job.profiles = [(nodes[0], profile), (nodes[1], corrupt)].into();
        job.links = vec![link(nodes[0], nodes[1]), link(nodes[2], nodes[0]), bad_link];
    });
    let (_, asked) = measured(&mut machine, sound, link);
    // Of profiles the missing and the unsound one, of links that which is not sound.
    assert_eq!(asked, [(nodes[1], 0), (nodes[2], 0), (nodes[1], 1)]);
    assert_eq!(machine.state(), State::Loading);
}

#[test]
fn a_board_that_vanishes_while_it_is_measured_is_left_out_by_name() {
    for at_links in [false, true] {
        let (mut machine, nodes) = started(3, |_| {});
        let last = nodes[2];
        if at_links {
            for &node in &nodes {
                let answer = Answer::Profiled(sound(node).map(Box::new));
                machine.handle_event(Duration::from_millis(1), News::Answer { node, answer });
            }
            assert_eq!(machine.state(), State::Linking);
        } else {
            assert_eq!(machine.state(), State::Profiling);
        }
        let gone = News::Disconnected { node: last, reason: "its connection ended".to_owned() };
        machine.handle_event(Duration::from_millis(1), gone);
        // Whoever was told to measure the link to it cannot, and says so.
        let mut said = Vec::new();
        while let Some(action) = machine.poll_action() {
            let answer = match &action {
                Told::Send { node, .. } if *node == last => None,
                Told::Send { node, order: Order::Profile { .. } } => {
                    Some((*node, Answer::Profiled(sound(*node).map(Box::new))))
                }
                Told::Send { node, order: Order::Links { peers } } => {
                    let (there, away): (Vec<_>, Vec<_>) = peers.iter().partition(|peer| peer.node != last);
                    let links = there.iter().map(|peer| link(*node, peer.node)).collect();
                    let failed = away
                        .iter()
                        .map(|peer| Failure { message: "timeout".to_owned(), blame: Some(peer.node) })
                        .collect();
                    Some((*node, Answer::LinksMeasured { links, failed }))
                }
                _ => None,
            };
            if let Some((node, answer)) = answer {
                machine.handle_event(Duration::from_millis(2), News::Answer { node, answer });
            }
            said.push(action);
        }
        let out: Vec<_> = said
            .iter()
            .filter_map(
                |t| if let Told::LeftOut(left) = t { Some((left.node, left.name.clone())) } else { None },
            )
            .collect();
        assert_eq!(out, [(last, info(last).name)], "{at_links}");
        assert_eq!(machine.state(), State::Loading, "{at_links}");
    }
}

#[test]
fn absurd_links_leave_their_reporter_out_and_never_reach_the_planner() {
    for value in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e30] {
        let (mut machine, nodes) = started(3, |_| {});
        let first = nodes[0];
        let absurd = |from, to| {
            let mut link = link(from, to);
            if from == first {
                link.figures.round_trips[1].time.median = Seconds(value);
            }
            link
        };
        let (said, _) = measured(&mut machine, sound, absurd);
        let out = left_out(&said);
        assert!(matches!(out[..], [(node, reason)] if node == first && reason.contains("absurd")), "{out:?}");
        assert_eq!(machine.state(), State::Loading);
        assert!(!machine.plan().unwrap().nodes().contains(&first));
    }
    // Nor does one that says nothing, or speaks of others' links.
    for other in [true, false] {
        let (mut machine, nodes) = started(3, |_| {});
        let first = nodes[0];
        let theirs =
            |from, to| if from == first && other { link(nodes[1], nodes[2]) } else { link(from, to) };
        let (said, _) = measured(&mut machine, sound, theirs);
        let out = left_out(&said);
        assert_eq!(out.len(), usize::from(other), "{out:?}");
        assert_eq!(machine.state(), State::Loading);
    }
}

#[test]
fn a_profile_that_outdoes_itself_is_doubted_and_used() {
    let (mut machine, nodes) = started(2, |_| {});
    let first = nodes[0];
    let profile = |node| {
        let mut profile = sound(node)?;
        if node == first {
            profile.rates.iter_mut().for_each(|rate| rate.stream.median = BytesPerSec(9e13));
        }
        Ok(profile)
    };
    let (said, _) = measured(&mut machine, profile, link);
    let doubted: Vec<_> = said
        .iter()
        .filter_map(|t| if let Told::Doubt { node, .. } = t { Some(*node) } else { None })
        .collect();
    assert_eq!(doubted, [first]);
    assert_eq!((left_out(&said).len(), machine.state()), (0, State::Loading));
}
