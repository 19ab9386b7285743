//! Nudges arrive, arrive soon, and only where they concern somebody.

use super::world::{By, World};
use axum::body::Body;
use axum::http::StatusCode;
use claviger_store::events::EventKind;
use claviger_wire::agent::Nudge;
use http_body_util::BodyExt;
use serde_json::Value;
use std::time::Duration;
use tokio::time::timeout;

/// What the promise says.
const SOON: Duration = Duration::from_secs(1);

/// The next thing on the stream: a nudge, or none for a comment. `Err` at its end.
async fn next(body: &mut Body) -> Result<Option<Nudge>, ()> {
    let frame = body.frame().await.ok_or(())?.map_err(|_| ())?;
    let text = String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap();
    Ok(text.strip_prefix("data: ").map(|json| serde_json::from_str(json.trim()).unwrap()))
}

async fn nudge(body: &mut Body) -> Nudge {
    timeout(SOON, next(body)).await.expect("within a second").expect("open").expect("a nudge")
}

async fn silent(body: &mut Body) {
    let heard = timeout(Duration::from_millis(300), next(body)).await;
    assert!(heard.is_err(), "{heard:?}");
}

#[tokio::test]
async fn changes_that_concern_the_cluster_are_told_within_a_second() {
    let world = World::new();
    let (root, other) = (world.key("root", true), world.key("other", true));
    let (_, nodes) = world.cluster("prod", &["n1"]).await;
    let response = world.send(By::Node(&nodes[0]), "GET /agent/v1/stream", Vec::new()).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut body = response.into_body();
    let first = nudge(&mut body).await;
    assert_eq!(first.event, 0);

    world.change(root, EventKind::Disable);
    world.change(root, EventKind::Enable);
    silent(&mut body).await;
    assert_eq!(world.open("prod", root).await.0, StatusCode::ACCEPTED);
    let opened = nudge(&mut body).await;
    assert_eq!(opened.revision, first.revision + 1);
    assert!(opened.event > 0, "the key has a past");
    world.change(root, EventKind::Rotate);
    assert!(nudge(&mut body).await.event > opened.event);
    world.change(other, EventKind::Rotate);
    world.cluster("other", &["n1"]).await;
    silent(&mut body).await;
    let _: Value =
        world.admin("POST /v3/clusters/prod/jobs", &serde_json::json!({ "kind": "census" })).await;
    assert_eq!(nudge(&mut body).await.revision, opened.revision, "a job is told too");

    world.app.hub.close();
    assert_eq!(timeout(SOON, next(&mut body)).await, Ok(Err(())), "a stopping server ends it");
}

#[tokio::test]
async fn a_third_stream_of_an_agent_ends_its_first_and_a_second_join_ends_all() {
    let world = World::new();
    let (_, nodes) = world.cluster("prod", &["n1"]).await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        let answer = world.send(By::Node(&nodes[0]), "GET /agent/v1/stream", Vec::new()).await;
        let mut body = answer.into_body();
        nudge(&mut body).await;
        streams.push(body);
    }
    assert_eq!(timeout(SOON, next(&mut streams[0])).await, Ok(Err(())));
    silent(&mut streams[1]).await;
    world.advance(1_000);
    let token = world.admin::<Value>("POST /v3/clusters/prod/join-tokens", &Value::Null).await;
    world.join(token["join_token"].as_str().unwrap(), "n1").await.unwrap();
    for stream in &mut streams[1..] {
        assert_eq!(timeout(SOON, next(stream)).await, Ok(Err(())));
    }
}

#[tokio::test]
async fn a_quiet_stream_has_a_comment_each_five_seconds() {
    let world = World::new();
    let (_, nodes) = world.cluster("prod", &["n1"]).await;
    let answer = world.send(By::Node(&nodes[0]), "GET /agent/v1/stream", Vec::new()).await;
    let mut body = answer.into_body();
    next(&mut body).await.unwrap().unwrap();
    let before = tokio::time::Instant::now();
    assert_eq!(next(&mut body).await, Ok(None));
    let waited = before.elapsed();
    assert!(waited >= Duration::from_secs(5) && waited < Duration::from_secs(6), "{waited:?}");
}
