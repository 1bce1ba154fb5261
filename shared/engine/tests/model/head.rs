//! The output head: split over nodes it answers exactly as whole, and as the definitions say.

use shoal_core::head::{Candidate, HeadAnswer, HeadQuery, HeadRequest, Penalties};
use shoal_core::ids::StepId;
use shoal_core::limits::VOCAB_TILE;
use shoal_core::message::HeadRow;
use shoal_engine::model::HeadError;

use crate::support::{Cluster, Layout, Model, run};

/// Everything a request can ask for, with tokens of every kind of logit.
fn request(k: u32) -> HeadRequest {
    let counts = (0..600).map(|i| (i * 3 + 1, i % 4)).collect();
    let mask: Vec<u8> = (0..200_u32).map(|i| if i % 5 == 0 { 0b1010_0110 } else { 0xff }).collect();
    HeadRequest {
        k,
        temperature: 0.7,
        penalties: Penalties { repeat: 1.3, frequency: 0.2, presence: 0.1, counts },
        bias: vec![(7, 3.5), (2047, 50.0), (1500, -4.0), (9, f32::NEG_INFINITY), (4000, 1.0)],
        mask: Some(mask),
        want_tiles: true,
        want_raw: true,
    }
}

fn answer(model: &Model, head: &[u32], threads: usize, request: &HeadRequest) -> (Cluster, HeadAnswer) {
    let mut cluster = Cluster::new(model, &Layout { head: head.to_vec(), ..Layout::single() }, threads);
    let prompt = &model.cases()[1].prompt;
    let row = HeadRow { row: prompt.len() as u32 - 1, request: request.clone() };
    let answers = cluster.step(&[run(0, 0, prompt)], &[row]);
    let answers: Vec<HeadAnswer> = answers.into_iter().map(|mut rows| rows.remove(0)).collect();
    (cluster, merge(answers, request.k as usize))
}

/// What the coordinator makes of the ranks' answers: candidates by logit and token, tiles in order.
fn merge(answers: Vec<HeadAnswer>, k: usize) -> HeadAnswer {
    let best = |of: fn(&HeadAnswer) -> &Vec<Candidate>| {
        let mut all: Vec<Candidate> = answers.iter().flat_map(of).copied().collect();
        all.sort_by(|a, b| b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token)));
        all.truncate(k);
        all
    };
    HeadAnswer {
        row: answers[0].row,
        top: best(|answer| &answer.top),
        raw_top: best(|answer| &answer.raw_top),
        tiles: answers.iter().flat_map(|answer| &answer.tiles).copied().collect(),
        raw_tiles: answers.iter().flat_map(|answer| &answer.raw_tiles).copied().collect(),
    }
}

#[test]
fn any_split_of_the_rows_answers_like_the_whole() {
    for model in Model::all() {
        for k in [1, 40, 1024] {
            let (_, whole) = answer(&model, &[1], 1, &request(k));
            for (threads, head) in [(1, &[1, 1][..]), (2, &[1, 3]), (3, &[0, 1, 2, 0, 5]), (1, &[1; 8])] {
                let (_, split) = answer(&model, head, threads, &request(k));
                assert_eq!(split, whole, "{} over {head:?}", model.kind);
            }
        }
    }
}

#[test]
fn answers_are_what_the_definitions_say() {
    let Some(model) = Model::stories("Q8_0") else { return };
    let (cluster, _) = answer(&model, &[1, 1], 1, &HeadRequest::greedy());
    let row = model.cases()[1].prompt.len() as u32 - 1;
    let raw = cluster.kept(row);
    let (cluster, found) = answer(&model, &[1, 1], 1, &request(50));

    let request = request(50);
    let mut modified = raw.clone();
    for &(token, count) in request.penalties.counts.iter().filter(|(_, count)| *count > 0) {
        let z = &mut modified[token as usize];
        let divided = if *z > 0.0 { *z / 1.3 } else { *z * 1.3 };
        *z = divided - count as f32 * 0.2 - 0.1;
    }
    for (token, bias) in &request.bias[..4] {
        modified[*token as usize] += bias;
    }
    for (token, logit) in modified.iter_mut().enumerate().take(1600) {
        if request.mask.as_ref().unwrap()[token / 8] >> (token % 8) & 1 == 0 {
            *logit = f32::NEG_INFINITY;
        }
    }
    assert_eq!(cluster.kept(row), modified);
    assert_eq!(found.top, best(&modified, 50));
    assert_eq!(found.raw_top, best(&raw, 50));
    assert_eq!(found.top[0].token, 2047, "the bias of 50 makes the last token the best");
    assert_near(&found.tiles, &tile_sums(&modified, f64::from(0.7_f32)));
    assert_near(&found.raw_tiles, &tile_sums(&raw, 1.0));
}

fn best(logits: &[f32], k: usize) -> Vec<Candidate> {
    let mut all: Vec<Candidate> =
        logits.iter().zip(0..).map(|(&logit, token)| Candidate { token, logit }).collect();
    all.sort_by(|a, b| b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token)));
    all.truncate(k);
    all
}

fn tile_sums(logits: &[f32], temperature: f64) -> Vec<f64> {
    let sum = |tile: &[f32]| -> f64 { tile.iter().map(|&z| (f64::from(z) / temperature).exp()).sum() };
    logits.chunks(VOCAB_TILE as usize).map(|tile| sum(tile).ln()).collect()
}

fn assert_near(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    let near = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-6;
    assert!(found.iter().zip(expected).all(near), "{found:?} {expected:?}");
}

#[test]
fn tiles_that_are_all_masked_are_minus_infinity_and_give_no_candidate() {
    let Some(model) = Model::stories("Q8_0") else { return };
    let mask = Some(vec![0; 2048 / 8]);
    let (_, found) = answer(&model, &[1, 1], 1, &HeadRequest { mask, ..request(10) });
    assert!(found.top.is_empty());
    assert!(found.tiles.iter().all(|sum| *sum == f64::NEG_INFINITY));
    assert_eq!(found.raw_top.len(), 10);
}

#[test]
fn equal_logits_go_to_the_lower_token() {
    let Some(model) = Model::stories("Q8_0") else { return };
    // A bias that swallows every difference makes all of its tokens equal.
    let bias = [900, 30, 1700].map(|token| (token, 1e30)).to_vec();
    let (_, found) = answer(&model, &[1, 1, 1], 1, &HeadRequest { bias, mask: None, ..request(3) });
    assert_eq!(found.top.iter().map(|candidate| candidate.token).collect::<Vec<_>>(), [30, 900, 1700]);
}

#[test]
fn questions_are_answered_until_the_step_is_settled() {
    let Some(model) = Model::stories("Q4_K_M") else { return };
    let (mut cluster, _) = answer(&model, &[1, 3], 1, &request(1));
    let row = model.cases()[1].prompt.len() as u32 - 1;
    let modified = cluster.kept(row);
    let nodes: Vec<_> = cluster.plan.head.iter().map(|head| head.node).collect();
    let mut all: Vec<Candidate> = Vec::new();
    for node in &nodes {
        all.extend(cluster.shards[node].query(StepId(1), row, HeadQuery::Top(300)).unwrap());
    }
    all.sort_by(|a, b| b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token)));
    assert_eq!(all[..300], best(&modified, 300));

    let foreign = cluster.shards[&nodes[0]].query(StepId(1), row, HeadQuery::Tile(7));
    assert_eq!(foreign, Err(HeadError::Tile(7)));
    let beyond = cluster.shards[&nodes[1]].query(StepId(1), row, HeadQuery::Tile(u32::MAX));
    assert_eq!(beyond, Err(HeadError::Tile(u32::MAX)));
    let unknown = |cluster: &Cluster, step, row| {
        let result = cluster.shards[&nodes[0]].query(StepId(step), row, HeadQuery::Top(1));
        assert_eq!(result, Err(HeadError::Unknown { step: StepId(step), row }));
    };
    unknown(&cluster, 1, row + 1);
    unknown(&cluster, 2, row);
    cluster.shards.values_mut().for_each(|shard| shard.settle(StepId(1)));
    unknown(&cluster, 1, row);
}

#[test]
fn requests_out_of_bounds_are_refused() {
    let Some(model) = Model::stories("Q8_0") else { return };
    let mut cluster = Cluster::new(&model, &Layout { sequences: 2, ..Layout::single() }, 1);
    let (&node, _) = cluster.shards.iter().next().unwrap();
    let shard = cluster.shards.get_mut(&node).unwrap();
    let row = |row| HeadRow { row, request: HeadRequest::greedy() };
    let x = vec![0.5; 256];
    let mut bad = x.clone();
    bad[200] = f32::NAN;

    let result = shard.head(StepId(1), &bad, &[row(3)]);
    assert_eq!(result, Err(HeadError::NonFinite { row: 3, what: "hidden values" }));
    let result = shard.head(StepId(1), &x, &[row(3), row(4)]);
    assert_eq!(result, Err(HeadError::Rows { rows: 1, requests: 2 }));
    let result = shard.head(StepId(1), &[&x[..], &x].concat(), &[row(3), row(3)]);
    assert_eq!(result, Err(HeadError::Rows { rows: 2, requests: 2 }));
    let none = HeadRow { row: 0, request: HeadRequest { k: 0, ..HeadRequest::greedy() } };
    assert!(matches!(shard.head(StepId(1), &x, &[none]), Err(HeadError::Request { row: 0, .. })));
    let three = [&x[..], &x, &x].concat();
    let result = shard.head(StepId(1), &three, &[row(0), row(1), row(2)]);
    assert_eq!(result, Err(HeadError::Room { wanted: 3, kept: 0, most: 4 }));

    let two = [&x[..], &x].concat();
    shard.head(StepId(1), &two, &[row(0), row(1)]).unwrap();
    assert_eq!(shard.head(StepId(1), &x, &[row(0)]), Err(HeadError::Again(StepId(1))));
    shard.head(StepId(2), &two, &[row(0), row(1)]).unwrap();
    let result = shard.head(StepId(3), &x, &[row(0)]);
    assert_eq!(result, Err(HeadError::Room { wanted: 1, kept: 4, most: 4 }));
    shard.settle(StepId(1));
    shard.head(StepId(3), &x, &[row(0)]).unwrap();
}
