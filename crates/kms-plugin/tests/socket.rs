//! A real gRPC client on a real socket.

mod common;

use claviger_crypto::kek::{ANNOTATION, Carried};
use claviger_domain::cluster::ring::serial_of;
use claviger_domain::id::Serial;
use claviger_kms_plugin::proto::key_management_service_server::KeyManagementService as _;
use claviger_kms_plugin::proto::{EncryptRequest, StatusResponse};
use claviger_kms_plugin::{Listener, Place, Plugin, SocketError};
use common::*;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::Ordering;
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_comes_back_and_nothing_else_opens() {
    let root = Root::new();
    let served = serve(&root);
    let mut client = client(&served.path).await;

    let before = status(&mut client).await.unwrap_err();
    assert_eq!(before.code(), Code::Unavailable, "{before}");

    let kek = root.mint(1);
    served.plugin.set(root.ring(5, &[&kek]));
    let said = status(&mut client).await.unwrap();
    assert_eq!((said.version.as_str(), said.healthz.as_str()), ("v2", "ok"));
    assert_eq!(Some(&said.key_id), served.plugin.key_id().as_ref());
    assert_eq!(served.plugin.revision(), Some(5));
    assert_eq!(served.plugin.self_test(), [Serial(1)]);

    let sealed = encrypt(&mut client, &[7; 32]).await.unwrap();
    assert_eq!(sealed.key_id, said.key_id);
    assert!(sealed.ciphertext.len() <= 1024);
    let carried = Carried::parse(&sealed.annotations[ANNOTATION]).unwrap();
    assert_eq!((carried.root, &carried.wrapped), (root.version, &kek.0.wrapped));
    assert_eq!(decrypt(&mut client, stored(&sealed)).await.unwrap(), [7; 32]);

    for (len, ok) in [(0, false), (1, true), (512, true), (513, false)] {
        let answer = encrypt(&mut client, &vec![1; len]).await;
        assert_eq!(answer.is_ok(), ok, "{len}");
        if let Err(status) = answer {
            assert_eq!(status.code(), Code::InvalidArgument, "{len}");
        }
    }
    type Change = fn(&mut claviger_kms_plugin::proto::DecryptRequest);
    let changes: [(&str, Change, Code); 6] = [
        ("key id", |r| r.key_id.push('x'), Code::InvalidArgument),
        ("no key id", |r| r.key_id.clear(), Code::InvalidArgument),
        ("ciphertext", |r| *r.ciphertext.last_mut().unwrap() ^= 1, Code::InvalidArgument),
        ("short", |r| r.ciphertext.truncate(7), Code::InvalidArgument),
        ("long", |r| r.ciphertext.resize(1025, 0), Code::InvalidArgument),
        ("serial", |r| r.ciphertext[7] = 9, Code::InvalidArgument),
    ];
    for (what, change, code) in changes {
        let mut request = stored(&sealed);
        change(&mut request);
        let status = decrypt(&mut client, request).await.unwrap_err();
        assert_eq!(status.code(), code, "{what}: {status}");
    }
    assert_eq!(root.unwraps.load(Ordering::SeqCst), 0, "nothing of this asks the key service");

    let mut huge = stored(&sealed);
    huge.annotations.insert("x.y".to_owned(), vec![0; 100 << 10]);
    assert_eq!(decrypt(&mut client, huge).await.unwrap_err().code(), Code::OutOfRange);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fence_closes_every_door_until_a_ring_is_set() {
    let root = Root::new();
    let served = serve(&root);
    let mut client = client(&served.path).await;
    let kek = root.mint(1);
    served.plugin.set(root.ring(1, &[&kek]));
    let sealed = encrypt(&mut client, &[7; 32]).await.unwrap();

    served.plugin.fence("root key suspended");
    served.plugin.fence("root key suspended");
    let answers = [
        status(&mut client).await.map(|_| ()).unwrap_err(),
        encrypt(&mut client, &[7; 32]).await.map(|_| ()).unwrap_err(),
        decrypt(&mut client, stored(&sealed)).await.map(|_| ()).unwrap_err(),
    ];
    for status in answers {
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(status.message(), "fenced: root key suspended");
    }
    assert_eq!(root.unwraps.load(Ordering::SeqCst), 0, "the annotation is no way around");
    assert_eq!((served.plugin.key_id(), served.plugin.revision()), (None, None));
    assert!(served.plugin.self_test().is_empty());

    served.plugin.wait("the key service is away");
    assert_eq!(status(&mut client).await.unwrap_err().code(), Code::Unavailable);
    served.plugin.set(root.ring(2, &[&kek]));
    assert_eq!(decrypt(&mut client, stored(&sealed)).await.unwrap(), [7; 32]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_carried_kek_is_opened_once_and_a_forged_one_never() {
    let root = Root::new();
    let served = serve(&root);
    let mut first = client(&served.path).await;
    let old = root.mint(1);
    served.plugin.set(root.ring(1, &[&old]));
    let sealed = encrypt(&mut first, &[7; 32]).await.unwrap();
    served.plugin.set(root.ring(2, &[&root.mint(2)]));

    let calls = (0..20).map(|_| {
        let (mut client, request) = (first.clone(), stored(&sealed));
        tokio::spawn(async move { decrypt(&mut client, request).await.unwrap() })
    });
    for call in calls.collect::<Vec<_>>() {
        assert_eq!(call.await.unwrap(), [7; 32]);
    }
    assert_eq!(root.unwraps.load(Ordering::SeqCst), 1);

    let mut none = stored(&sealed);
    none.annotations.clear();
    assert_eq!(decrypt(&mut first, none).await.unwrap_err().code(), Code::NotFound);

    // Another serial, key id or root version than the ciphertext's: refused unasked.
    let carried = Carried::parse(&sealed.annotations[ANNOTATION]).unwrap();
    let other_root = Root::new().version;
    for forged in [
        Carried { serial: Serial(2), ..carried.clone() },
        Carried { root: other_root, ..carried.clone() },
    ] {
        let mut request = stored(&sealed);
        request.annotations.insert(ANNOTATION.to_owned(), forged.to_bytes());
        let status = decrypt(&mut first, request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }
    assert_eq!(root.unwraps.load(Ordering::SeqCst), 1);

    // A KEK that the root key did not wrap is asked for, refused, and not asked for again.
    let stranger = Carried { wrapped: Root::new().mint(1).0.wrapped, ..carried.clone() };
    for _ in 0..5 {
        let mut request = stored(&sealed);
        request.annotations.insert(ANNOTATION.to_owned(), stranger.to_bytes());
        let status = decrypt(&mut first, request).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    }
    assert_eq!(root.unwraps.load(Ordering::SeqCst), 2);

    // The right KEK of another serial, renamed: AAD forbids it.
    let mut request = stored(&sealed);
    let renamed = Carried { wrapped: root.mint(3).0.wrapped, ..carried.clone() };
    request.annotations.insert(ANNOTATION.to_owned(), renamed.to_bytes());
    let status = decrypt(&mut first, request).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");

    // A flood of different forgeries runs into the budget.
    let mut limited = 0;
    for _ in 0..20 {
        let mut request = stored(&sealed);
        let forged = Carried { wrapped: Root::new().mint(1).0.wrapped, ..carried.clone() };
        request.annotations.insert(ANNOTATION.to_owned(), forged.to_bytes());
        let status = decrypt(&mut first, request).await.unwrap_err();
        limited += usize::from(status.code() == Code::ResourceExhausted);
    }
    assert!(limited >= 10, "{limited}");
    // What was opened before is served all the same.
    assert_eq!(decrypt(&mut first, stored(&sealed)).await.unwrap(), [7; 32]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resolve_that_a_fence_overtakes_opens_nothing() {
    let root = Root::new();
    let served = serve(&root);
    let mut client = client(&served.path).await;
    served.plugin.set(root.ring(1, &[&root.mint(1)]));
    let sealed = encrypt(&mut client, &[7; 32]).await.unwrap();
    served.plugin.set(root.ring(2, &[&root.mint(2)]));
    let call = {
        let (mut client, request) = (client.clone(), stored(&sealed));
        tokio::spawn(async move { decrypt(&mut client, request).await })
    };
    while root.unwraps.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    served.plugin.fence("suspended");
    assert!(call.await.unwrap().is_err());

    // A key service that is away is said to be away, and is not asked again at once.
    served.plugin.set(root.ring(3, &[&root.mint(2)]));
    root.away.store(true, Ordering::SeqCst);
    let asked = root.unwraps.load(Ordering::SeqCst);
    for _ in 0..3 {
        let status = decrypt(&mut client, stored(&sealed)).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status}");
    }
    assert_eq!(root.unwraps.load(Ordering::SeqCst), asked + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn rings_are_swapped_under_calls() {
    let root = Root::new();
    let served = serve(&root);
    let (one, two) = (root.mint(1), root.mint(2));
    served.plugin.set(root.ring(1, &[&one, &two]));
    let shared = client(&served.path).await;
    let calls = (0..100u8).map(|i| {
        let mut client = shared.clone();
        tokio::spawn(async move {
            for _ in 0..10 {
                let sealed = encrypt(&mut client, &[i; 32]).await.unwrap();
                let serial = u64::from_be_bytes(*sealed.ciphertext.first_chunk().unwrap());
                assert_eq!(serial_of(&sealed.key_id), Some(Serial(serial)));
                assert_eq!(decrypt(&mut client, stored(&sealed)).await.unwrap(), [i; 32]);
            }
        })
    });
    let calls: Vec<_> = calls.collect();
    for revision in 0..200 {
        let keks = if revision % 2 == 0 { [&one, &two] } else { [&two, &one] };
        served.plugin.set(root.ring(revision, &keks));
        tokio::task::yield_now().await;
    }
    for call in calls {
        call.await.unwrap();
    }
    assert_eq!(root.unwraps.load(Ordering::SeqCst), 0);
}

/// Whoever connects while a successor starts is answered by it, on the same socket.
#[tokio::test(flavor = "multi_thread")]
async fn a_socket_is_served_on_by_whoever_inherits_it() {
    use std::os::fd::AsFd;
    let root = Root::new();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kms.sock");
    let plugin = Plugin::new(root.cluster.clone(), root.clone());
    let first = Listener::bind(&path).unwrap();
    first.serve(plugin.clone(), async {}).await;
    let socket = || first.as_fd().try_clone_to_owned().unwrap();

    let early = tokio::spawn({
        let path = path.clone();
        async move { status(&mut client(&path).await).await.unwrap_err().code() }
    });
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    let second = Listener::inherit(socket(), first.place()).unwrap().unwrap();
    assert_eq!(second.path(), path);
    let elsewhere = Place { inode: first.place().inode + 1, ..first.place() };
    assert!(Listener::inherit(socket(), elsewhere).unwrap().is_none(), "another's file");
    // As an exec does, which runs no destructor.
    std::mem::forget(first);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let task = tokio::spawn(async move {
        let shutdown = async {
            let _ = stopped.await;
        };
        second.serve(plugin, shutdown).await;
    });
    assert_eq!(early.await.unwrap(), Code::Unavailable, "not ready, but answered");
    stop.send(()).unwrap();
    task.await.unwrap();
    assert!(!path.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_comes_and_goes() {
    let root = Root::new();
    let served = serve(&root);
    let mode = std::fs::symlink_metadata(&served.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(served.directory.path()).unwrap().count(), 1);

    let second = Listener::bind(&served.path).err().unwrap();
    assert!(matches!(second, SocketError::InUse(_)), "{second}");
    let _client = client(&served.path).await;
    served.stop.send(()).unwrap();
    served.task.await.unwrap();
    assert_eq!(std::fs::read_dir(served.directory.path()).unwrap().count(), 0);

    // What a killed process leaves: its socket, and the directory of a bind under way.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("k.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    std::fs::create_dir(directory.path().join(".k.sock.new")).unwrap();
    drop(std::os::unix::net::UnixListener::bind(directory.path().join(".k.sock.new/s")).unwrap());
    let listener = Listener::bind(&path).unwrap();
    assert_eq!(listener.path(), path);
    // Another's socket in our place is not ours to remove.
    std::fs::remove_file(&path).unwrap();
    let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
    drop(listener);
    assert!(path.exists());
    drop(other);

    let file = directory.path().join("file");
    std::fs::write(&file, "x").unwrap();
    assert!(matches!(Listener::bind(&file), Err(SocketError::NotASocket(_))));
    assert!(file.exists());
    let long = directory.path().join("x".repeat(108));
    assert!(matches!(Listener::bind(&long), Err(SocketError::TooLong { .. })));
    let fits = 107 - directory.path().as_os_str().len() - 1;
    drop(Listener::bind(&directory.path().join("y".repeat(fits))).unwrap());
    let absent = Listener::bind(&directory.path().join("no/k")).err().unwrap();
    assert!(matches!(absent, SocketError::Io { .. }), "{absent}");
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(Listener::bind(&path), Err(SocketError::OpenToAll(_))));
}

/// A message whose field 1 is a number, where the requests have bytes.
#[derive(Clone, PartialEq, prost::Message)]
struct Number {
    #[prost(uint64, tag = "1")]
    number: u64,
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_is_refused_and_the_connection_lives() {
    let root = Root::new();
    let served = serve(&root);
    let kek = root.mint(1);
    served.plugin.set(root.ring(1, &[&kek]));
    let mut raw = tonic::client::Grpc::new(channel(&served.path).await);
    for (method, code) in
        [("Encrypt", Code::Internal), ("Decrypt", Code::Internal), ("Rewrap", Code::Unimplemented)]
    {
        raw.ready().await.unwrap();
        let path = format!("/v2.KeyManagementService/{method}").parse().unwrap();
        let codec = tonic_prost::ProstCodec::<Number, StatusResponse>::default();
        let request = tonic::Request::new(Number { number: 7 });
        let status = raw.unary(request, path, codec).await.unwrap_err();
        assert_eq!(status.code(), code, "{method}: {status}");
    }
    let mut client = client(&served.path).await;
    let sealed = encrypt(&mut client, &[7; 32]).await.unwrap();
    assert_eq!(decrypt(&mut client, stored(&sealed)).await.unwrap(), [7; 32]);

    // Callers in the process get what the socket's get.
    let request = tonic::Request::new(stored(&sealed));
    assert_eq!(served.plugin.decrypt(request).await.unwrap().into_inner().plaintext, [7; 32]);
    let request = EncryptRequest { plaintext: vec![7; 32], uid: String::new() };
    let inside = served.plugin.encrypt(tonic::Request::new(request)).await.unwrap().into_inner();
    assert_eq!((inside.key_id, inside.annotations), (sealed.key_id, sealed.annotations));
}
