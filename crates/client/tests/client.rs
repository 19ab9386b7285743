//! The client against answers good and bad, over real TLS.

#![allow(clippy::unwrap_used)] // A panic is the report of a test.

mod common;

use claviger_client::{AgentApi, Error, KeyService, Operator, UnwrapOutcome, WantedEvents};
use claviger_domain::id::{InstanceId, KeyId};
use claviger_domain::key::KeyState;
use claviger_wire::agent::{JoinRequest, LeaseRequest};
use claviger_wire::kp::{Envelope, KEY_TYPE, Key};
use common::*;
use futures_util::StreamExt;
use std::time::{Duration, Instant};

const TOKEN: &str = "POST /identity/token";

fn key(state: KeyState) -> Answer {
    let key = Key { state: state as u8, name: "k".to_owned(), ..Key::default() };
    (200, "", serde_json::to_string(&Envelope::of(KEY_TYPE, vec![key])).unwrap())
}

fn ids() -> (InstanceId, KeyId) {
    (InstanceId::random(), KeyId::random())
}

#[tokio::test]
async fn one_token_serves_many_calls_and_a_refused_one_is_replaced_once() {
    let server = Server::start(|asked, before| match asked.line.as_str() {
        TOKEN => token(),
        line if line.ends_with("/enable") => refusal(401, ""),
        // The third read meets a token that the server no longer takes.
        _ if before == 2 => refusal(401, ""),
        _ => key(KeyState::Active),
    })
    .await;
    let keys = Operator::connect(&server.config()).unwrap().keys;
    let (instance, id) = ids();
    for _ in 0..2 {
        keys.metadata(instance, id).await.unwrap();
    }
    assert_eq!(server.count(TOKEN), 1);
    keys.metadata(instance, id).await.unwrap();
    assert_eq!(server.count(TOKEN), 2);
    let error = keys.enable(instance, id).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
    assert_eq!((server.count(TOKEN), server.count("POST /api")), (3, 2));

    let asked = server.asked.lock().unwrap();
    assert_eq!(
        asked[0].body,
        "grant_type=urn%3Aibm%3Aparams%3Aoauth%3Agrant-type%3Aapikey&apikey=k%26y%3D1"
    );
    assert_eq!(asked[1].headers["authorization"], "Bearer a.b.c");
    assert_eq!(asked[1].headers["bluemix-instance"], instance.to_string());
}

#[tokio::test]
async fn a_token_near_its_end_is_not_kept_and_a_wrong_key_is_named() {
    let server = Server::start(|asked, before| match asked.line.as_str() {
        TOKEN if before < 2 => token_for(60),
        TOKEN => (400, "", r#"{"errorCode":"BXNIM0415E","errorMessage":"no key"}"#.to_owned()),
        _ => key(KeyState::Active),
    })
    .await;
    let keys = Operator::connect(&server.config()).unwrap().keys;
    let (instance, id) = ids();
    keys.metadata(instance, id).await.unwrap();
    keys.metadata(instance, id).await.unwrap();
    assert_eq!(server.count(TOKEN), 2);
    let error = keys.metadata(instance, id).await.unwrap_err();
    assert_eq!(error, Error::Unauthorized { message: "no key".to_owned() });
}

#[tokio::test]
async fn only_what_may_be_said_twice_is_said_again() {
    let server = Server::start(|asked, before| match asked.line.as_str() {
        TOKEN => token(),
        line if line.starts_with("GET") && before == 1 => (429, "retry-after: 0\r\n", "".into()),
        line if line.starts_with("GET") && before == 2 => key(KeyState::Active),
        _ => (503, "retry-after: 0\r\n", "".into()),
    })
    .await;
    let keys = Operator::connect(&server.config()).unwrap().keys;
    let (instance, id) = ids();
    keys.metadata(instance, id).await.unwrap();
    assert_eq!(server.count("GET"), 3);
    for error in [
        keys.disable(instance, id).await.unwrap_err(),
        keys.rotate(instance, id, None).await.unwrap_err(),
    ] {
        assert!(error.is_unreachable(), "{error}");
    }
    assert_eq!(server.count("POST /api"), 2);
    assert!(keys.wrap(instance, id, None, &[]).await.is_err());
    assert_eq!(server.count("POST /api"), 2 + 4, "bounded");
}

#[tokio::test]
async fn who_called_too_often_waits_and_calls_again_whatever_it_was() {
    let server = Server::start(|asked, before| match asked.line.as_str() {
        TOKEN if before == 0 => (429, "retry-after: 0\r\n", "".into()),
        TOKEN => token(),
        line if line.ends_with("/disable") && before < 2 => (429, "retry-after: 0\r\n", "".into()),
        line if line.ends_with("/disable") => (204, "", "".into()),
        // No word of when: it is not the caller who called too often.
        line if line.ends_with("/enable") => (429, "", "".into()),
        _ => (429, "retry-after: 0\r\n", "".into()),
    })
    .await;
    let keys = Operator::connect(&server.config()).unwrap().keys;
    let (instance, id) = ids();
    keys.disable(instance, id).await.unwrap();
    assert_eq!((server.count(TOKEN), server.count("POST /api")), (2, 3));
    assert!(keys.enable(instance, id).await.unwrap_err().is_unreachable());
    assert_eq!(server.count("POST /api"), 3 + 1);
    let error = keys.rotate(instance, id, None).await.unwrap_err();
    assert!(matches!(error, Error::Busy { status: 429, .. }), "{error}");
    assert_eq!(server.count("POST /api"), 4 + 4, "bounded");
}

/// What one unwrap meets, and what the agent must conclude.
async fn conclude(answers: impl Fn(&Asked, usize) -> Answer + Send + Sync + 'static) -> String {
    let server = Server::start(move |asked, before| match asked.line.as_str() {
        TOKEN => token(),
        _ => answers(asked, before),
    })
    .await;
    let keys = Operator::connect(&server.config()).unwrap().keys;
    let (instance, id) = ids();
    match keys.try_unwrap(instance, id, "text", &["a".to_owned()]).await {
        UnwrapOutcome::Opened(opened) => format!("opened {:?}", opened.plaintext.expose()),
        UnwrapOutcome::Closed { state, .. } => format!("closed {state:?}"),
        UnwrapOutcome::Refused(_) => "refused".to_owned(),
        UnwrapOutcome::Unknown(_) => "unknown".to_owned(),
    }
}

#[tokio::test]
async fn fence_or_coast() {
    let state = "KEY_ACTION_INVALID_STATE_ERR";
    let open = || (200, "", r#"{"plaintext":"BQY="}"#.to_owned());
    let unwrap = |a: &Asked| a.line.ends_with("/actions/unwrap");

    assert_eq!(conclude(move |_, _| open()).await, "opened [5, 6]");
    for was in [KeyState::Suspended, KeyState::Deactivated, KeyState::Destroyed] {
        let answers = move |a: &Asked, _| if unwrap(a) { refusal(409, state) } else { key(was) };
        assert_eq!(conclude(answers).await, format!("closed Some({was:?})"));
    }
    let gone = move |a: &Asked, _| match unwrap(a) {
        true => refusal(410, "KEY_DELETED_ERR"),
        false => refusal(404, "KEY_NOT_FOUND_ERR"),
    };
    assert_eq!(conclude(gone).await, "closed None");
    // Enabled while the state was asked for.
    let back = move |a: &Asked, before| match (unwrap(a), before) {
        (true, 0) => refusal(409, state),
        (true, _) => open(),
        (false, _) => key(KeyState::Active),
    };
    assert_eq!(conclude(back).await, "opened [5, 6]");

    for (answer, expected) in [
        (refusal(409, "REQ_TOO_EARLY_ERR"), "refused"),
        (refusal(404, "KEY_NOT_FOUND_ERR"), "refused"),
        (refusal(422, "UNPROCESSABLE_CIPHERTEXT_ERR"), "refused"),
        (refusal(401, "UNAUTHORIZED_ERR"), "refused"),
        // None of these is the key service's word on the key.
        ((409, "", "<html>Conflict</html>".to_owned()), "unknown"),
        ((410, "", String::new()), "unknown"),
        (refusal(500, state), "unknown"),
        (refusal(502, state), "unknown"),
        (refusal(503, state), "unknown"),
        ((200, "", "{}".to_owned()), "unknown"),
        ((200, "", r#"{"plaintext":"%"}"#.to_owned()), "unknown"),
        ((302, "location: https://localhost:1/\r\n", String::new()), "unknown"),
        ((200, "content-length: 1000000000\r\n", String::new()), "unknown"),
        // Half a body.
        ((200, "content-length: 100\r\nconnection: close\r\n", "{".to_owned()), "unknown"),
    ] {
        let what = format!("{answer:?}");
        assert_eq!(conclude(move |_, _| answer.clone()).await, expected, "{what}");
    }
}

#[tokio::test]
async fn a_server_that_is_away_mute_or_another_is_not_a_suspended_key() {
    let server = Server::start(|asked, _| match asked.line.as_str() {
        TOKEN => token(),
        _ => (0, "", String::new()),
    })
    .await;
    let (instance, id) = ids();
    let begun = Instant::now();
    let keys = Operator::connect(&server.config()).unwrap().keys;
    let mute = keys.try_unwrap(instance, id, "text", &[]).await;
    assert!(matches!(mute, UnwrapOutcome::Unknown(Error::Unreachable { .. })));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());

    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut config = server.config();
    config.url = format!("https://{free}");
    let away = Operator::connect(&config).unwrap().keys.metadata(instance, id).await.unwrap_err();
    assert!(away.is_unreachable(), "{away}");
    assert!(away.to_string().contains("refused"), "{away}");

    let other = Server::start(|_, _| refusal(409, "KEY_ACTION_INVALID_STATE_ERR")).await;
    let mut config = server.config();
    config.url = other.url.clone();
    let keys = Operator::connect(&config).unwrap().keys;
    let wrong = keys.try_unwrap(instance, id, "text", &[]).await;
    let UnwrapOutcome::Unknown(Error::Tls { what, .. }) = wrong else { panic!("not TLS") };
    assert!(what.contains("not signed by the CA"), "{what}");

    let mut config = other.config();
    config.url = other.url.replace("localhost", "127.0.0.1");
    let name = Operator::connect(&config).unwrap().keys.metadata(instance, id).await.unwrap_err();
    assert!(name.to_string().contains("another name"), "{name}");

    // Something that is no TLS server at all.
    let plain = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    config.url = format!("https://localhost:{}", plain.local_addr().unwrap().port());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = plain.accept().await {
            use tokio::io::AsyncWriteExt;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let error = Operator::connect(&config).unwrap().keys.metadata(instance, id).await.unwrap_err();
    assert!(matches!(&error, Error::Tls { what, .. } if what.contains("right port")), "{error}");
}

#[tokio::test]
async fn a_node_shows_its_certificate() {
    let server = Server::start(|asked, before| match asked.line.as_str() {
        TOKEN => token(),
        "GET /agent/v1/stream" => {
            let body = ":\n\ndata: {\"revision\":1,\"event\":0}\n\n\
                        data: {\"revision\":2,\"event\":3}\n\n";
            (200, "content-type: text/event-stream\r\nconnection: close\r\n", body.to_owned())
        }
        "POST /agent/v1/lease" if before == 0 => refusal(409, "HELD"),
        "POST /agent/v1/lease" => (200, "", r#"{"fencing":4,"until":5}"#.to_owned()),
        "POST /agent/v1/join" => refusal(409, "USED"),
        _ => key(KeyState::Active),
    })
    .await;
    let node = server.node(&server.ca);
    let (instance, id) = ids();
    KeyService::for_node(&node).unwrap().metadata(instance, id).await.unwrap();
    let api = AgentApi::connect(&node).unwrap();
    assert!(api.lease(&LeaseRequest { fencing: None }).await.unwrap().is_none());
    assert_eq!(api.lease(&LeaseRequest { fencing: None }).await.unwrap().unwrap().fencing, 4);
    let nudges: Vec<_> = api.stream().await.unwrap().collect().await;
    let revisions: Vec<_> = nudges.into_iter().map(|n| n.unwrap().revision).collect();
    assert_eq!(revisions, [1, 2]);
    {
        let asked = server.asked.lock().unwrap();
        assert!(asked.iter().all(|a| a.certificate));
        assert!(asked[0].body.contains("node-certificate") && !asked[0].body.contains("apikey"));
    }
    let join = JoinRequest {
        token: "t".to_owned(),
        agent: "a".parse().unwrap(),
        csr: String::new(),
        cluster: None,
    };
    let used = AgentApi::join(&server.url, &server.ca.pem, &join).await.unwrap_err();
    assert_eq!(used.reason(), Some("USED"));
    assert!(!server.asked.lock().unwrap().last().unwrap().certificate);

    // A certificate of another CA: the server's alert is told as what it is.
    let stranger = server.node(&Ca::new());
    let error = AgentApi::connect(&stranger).unwrap().state().await.unwrap_err();
    assert!(
        matches!(&error, Error::Tls { what, .. } if what.contains("this node's certificate")),
        "{error}"
    );
}

#[tokio::test]
async fn lists_are_read_page_by_page() {
    let server = Server::start(|asked, _| match asked.line.as_str() {
        TOKEN => token(),
        line => {
            let offset: usize = line.rsplit("offset=").next().unwrap().parse().unwrap();
            let left = 450usize.saturating_sub(offset).min(200);
            let page = Envelope::of(KEY_TYPE, vec![Key::default(); left]);
            (200, "", serde_json::to_string(&page).unwrap())
        }
    })
    .await;
    let keys = Operator::connect(&server.config()).unwrap().keys;
    assert_eq!(keys.list(InstanceId::random()).await.unwrap().len(), 450);
    assert_eq!(server.count("GET"), 3);
}

#[tokio::test]
async fn an_operator_logs_in_once_whatever_he_asks() {
    let server = Server::start(|asked, _| match asked.line.as_str() {
        TOKEN => token(),
        line if line.contains("/v3/audit") => (200, "", r#"{"events":[],"next":null}"#.to_owned()),
        line if line.contains("/v2/vpc/getClusters") => (200, "", "[]".to_owned()),
        _ => key(KeyState::Active),
    })
    .await;
    let operator = Operator::connect(&server.config()).unwrap();
    let (instance, id) = ids();
    operator.keys.metadata(instance, id).await.unwrap();
    assert!(operator.clusters.list().await.unwrap().is_empty());
    assert!(operator.admin.events(&WantedEvents::default(), 1).await.unwrap().events.is_empty());
    assert_eq!(server.count(TOKEN), 1);
}

#[tokio::test]
async fn a_list_that_is_not_read_to_its_end_is_an_error() {
    let page = vec![Key { name: "k".to_owned(), ..Key::default() }; 200];
    let page = serde_json::to_string(&Envelope::of(KEY_TYPE, page)).unwrap();
    let server = Server::start(move |asked, _| match asked.line.as_str() {
        TOKEN => token(),
        _ => (200, "", page.clone()),
    })
    .await;
    let keys = Operator::connect(&server.config()).unwrap().keys;
    let error = keys.list(InstanceId::random()).await.unwrap_err();
    assert!(error.to_string().contains("more than 100000"), "{error}");
}
