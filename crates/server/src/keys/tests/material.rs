//! What is done with material, and that none of it lies about.

use super::*;

#[tokio::test]
async fn what_was_wrapped_unwraps_through_rotations() {
    let w = World::new();
    let id = w.root().await;
    let post = |action: &str| format!("POST /keys/{id}/actions/{action}");
    let dek = STANDARD.encode(b"a 20-byte passphrase");
    let wrapped =
        w.call(&post("wrap"), &json!({"plaintext": dek, "aad": ["v", null]})).await.is(200);
    assert!(wrapped.body.get("plaintext").is_none(), "a given plaintext is never echoed");
    let old = wrapped.body["keyVersion"]["id"].clone();
    let ciphertext = wrapped.body["ciphertext"].clone();
    w.call(&post("rotate"), &Value::Null).await.is(204);
    let ask = json!({"ciphertext": ciphertext, "aad": ["v", ""]});
    let opened = w.call(&post("unwrap"), &ask).await.is(200);
    assert_eq!(opened.body["plaintext"], json!(dek));
    assert_eq!(opened.body["keyVersion"]["id"], old);
    let new = opened.body["rewrappedKeyVersion"]["id"].clone();
    assert_ne!(new, old);
    let again = json!({"ciphertext": opened.body["ciphertext"], "aad": ["v", null]});
    let opened = w.call(&post("unwrap"), &again).await.is(200);
    assert_eq!((&opened.body["plaintext"], &opened.body["keyVersion"]["id"]), (&json!(dek), &new));
    assert!(opened.body.get("ciphertext").is_none(), "already the newest");
    let rewrapped = w.call(&post("rewrap"), &ask).await.is(200);
    assert!(rewrapped.body.get("plaintext").is_none());
    assert_eq!(rewrapped.body["keyVersion"]["id"], old);
    assert_eq!(rewrapped.body["rewrappedKeyVersion"]["id"], new);

    for wrong in [json!(["v"]), json!([null, "v"]), json!([])] {
        let ask = json!({"ciphertext": ciphertext, "aad": wrong});
        w.call(&post("unwrap"), &ask).await.refused(422, "UNPROCESSABLE_CIPHERTEXT_ERR");
    }
    let other = w.root().await;
    let line = format!("POST /keys/{other}/actions/unwrap");
    w.call(&line, &ask).await.refused(422, "UNPROCESSABLE_CIPHERTEXT_ERR");
    w.call(&post("unwrap"), &Value::Null).await.refused(400, "NO_BODY_ERR");
    w.call(&post("unwrap"), &json!({})).await.refused(400, "INVALID_FIELD_ERR");
    w.call(&post("wrap"), &json!({"plaintext": "%"})).await.refused(400, "INVALID_FIELD_ERR");
    let long = json!({"plaintext": STANDARD.encode(vec![1; (16 << 10) + 1])});
    w.call(&post("wrap"), &long).await.refused(400, "INVALID_FIELD_ERR");
    let most = json!({"plaintext": STANDARD.encode(vec![1; 16 << 10])});
    let most = w.call(&post("wrap"), &most).await.is(200).body["ciphertext"].clone();
    w.call(&post("unwrap"), &json!({"ciphertext": most})).await.is(200);
    let aad = json!({"aad": ["x".repeat(256)]});
    w.call(&post("wrap"), &aad).await.refused(400, "INVALID_FIELD_ERR");
    w.call(&post("melt"), &Value::Null).await.refused(400, "INVALID_QUERY_PARAM_ERR");

    // The old form, and wrap without a plaintext.
    let made = w.by(&w.manager, &format!("POST /keys/{id}?action=wrap"), "").await.is(200);
    assert_eq!(STANDARD.decode(made.body["plaintext"].as_str().unwrap()).unwrap().len(), 32);
    let versions = w.call(&format!("GET /keys/{id}/versions?totalCount=True"), &Value::Null).await;
    assert_eq!(versions.body["resources"][0]["id"], new, "newest first");
    assert_eq!(versions.body["metadata"]["totalCount"], 2);
}

#[tokio::test]
async fn imported_keys_rotate_with_material_and_generated_ones_without() {
    let w = World::with(Settings::default().without_waits());
    let payload = STANDARD.encode([3; 24]);
    let imported = w.create(json!({"name": "byok", "payload": payload})).await.is(201);
    assert_eq!(imported.key()["imported"], true);
    let line = format!("POST /keys/{}/actions/rotate", imported.id());
    w.call(&line, &json!({})).await.refused(400, "KEY_PAYLOAD_REQ_ERR");
    w.call(&line, &json!({"payload": STANDARD.encode([4; 15])}))
        .await
        .refused(400, "INVALID_FIELD_ERR");
    w.call(&line, &json!({"payload": STANDARD.encode([4; 32])})).await.is(204);
    let line = format!("POST /keys/{}/actions/rotate", w.root().await);
    w.call(&line, &json!({"payload": payload})).await.refused(400, "INVALID_QUERY_PARAM_ERR");
    w.call(&line, &Value::Null).await.is(204);
    w.call(&line, &Value::Null).await.is(204);
}

#[tokio::test]
async fn no_file_of_the_database_holds_material_in_the_clear() {
    let w = World::with(Settings::default().without_waits());
    let (root, standard) = ([0xa7_u8; 32], [0x5c_u8; 48]);
    let new = json!({"name": "byok", "payload": STANDARD.encode(root)});
    let id = w.create(new).await.is(201).id();
    let new = json!({"name": "std", "extractable": true, "payload": STANDARD.encode(standard)});
    w.create(new).await.is(201);
    let dek = b"the plaintext of a DEK, marked";
    let line = format!("POST /keys/{id}/actions/wrap");
    w.call(&line, &json!({"plaintext": STANDARD.encode(dek)})).await.is(200);
    let marks: [&[u8]; 3] = [&root, &standard, dek];
    let mut read = 0;
    for bytes in w.files() {
        read += bytes.len();
        for mark in marks {
            let base64 = STANDARD.encode(mark);
            assert!(!bytes.windows(mark.len()).any(|window| window == mark));
            assert!(!bytes.windows(base64.len()).any(|window| window == base64.as_bytes()));
        }
    }
    assert!(read > 10_000, "the database and its log were read");
    // The search does find what is there: names are not secret.
    let all: Vec<u8> = w.files().concat();
    assert!(all.windows(4).any(|window| window == b"byok"));
}
