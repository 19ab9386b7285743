//! Import tokens, with the sender's side as a client does it.

use super::*;
use claviger_crypto::transport::{Oaep, seal_for, seal_nonce};

/// The fields of an import, made of what a token's retrieval answers.
fn sealed(token: &Value, material: &[u8], iv: &[u8], oaep: Oaep) -> Value {
    let bytes = |name: &str| STANDARD.decode(token[name].as_str().unwrap()).unwrap();
    let pem = String::from_utf8(bytes("payload")).unwrap();
    assert!(pem.starts_with("-----BEGIN PUBLIC KEY-----\n"), "{pem}");
    let nonce = bytes("nonce");
    assert_eq!(nonce.len(), 12);
    json!({
        "payload": STANDARD.encode(seal_for(&pem, oaep, material).unwrap()),
        "encryptedNonce": STANDARD.encode(seal_nonce(material, iv, &nonce).unwrap()),
        "iv": STANDARD.encode(iv),
    })
}

fn with(mut fields: Value, name: &str, value: Value) -> Value {
    fields[name] = value;
    fields
}

#[tokio::test]
async fn material_is_imported_and_rotated_under_a_token() {
    let w = World::with(Settings::default().without_waits());
    let null = Value::Null;
    let material = [0x3d_u8; 32];
    w.call("GET /import_token", &null).await.refused(404, "IMPORT_TOKEN_NOT_FOUND_ERR");
    let early = json!({"name": "xx", "payload": "AAAA", "encryptedNonce": "AAAA",
                       "iv": STANDARD.encode([0; 12])});
    w.create(early).await.refused(409, "IMPORT_TOKEN_NOT_FOUND_ERR");
    for bad in [
        json!({"expiration": 299}),
        json!({"expiration": 86_401}),
        json!({"maxAllowedRetrievals": 501}),
        json!({"maxAllowedRetrievals": 0}),
    ] {
        w.call("POST /import_token", &bad).await.refused(400, "INVALID_FIELD_ERR");
    }
    let reader = w.person("r", &[(ServiceRole::Reader, Scope::Instance(w.one))]);
    w.by(&reader, "POST /import_token", "").await.is(401);

    let wanted = json!({"expiration": 1200, "maxAllowedRetrievals": 2});
    let made = w.call("POST /import_token", &wanted).await.is(200);
    assert_eq!(made.media_type, "application/vnd.ibm.kms.import_token+json");
    assert_eq!(made.body["remainingRetrievals"], 2);
    assert_eq!(made.body["expirationDate"], "2027-01-15T08:20:00Z");
    assert!(made.body.get("payload").is_none() && made.body.get("nonce").is_none());
    let token = w.call("GET /import_token", &null).await.is(200).body;
    assert_eq!(
        (&token["maxAllowedRetrievals"], &token["remainingRetrievals"]),
        (&json!(2), &json!(1))
    );

    // As Key Protect's clients do it: GCM and SHA-256, named or not.
    let fields = sealed(&token, &material, &[1; 12], Oaep::Sha256);
    let key = with(fields.clone(), "name", json!("byok"));
    let imported = w.create(key.clone()).await.is(201);
    assert_eq!(imported.key()["imported"], true);
    let named = with(key.clone(), "encryptionAlgorithm", json!("RSAES_OAEP_SHA_256"));
    w.create(named).await.is(201);
    // As Hyper Protect's do: CBC and SHA-1.
    let hyper = sealed(&token, &material[..16], &[1; 16], Oaep::Sha1);
    let hyper = with(hyper, "encryptionAlgorithm", json!("RSAES_OAEP_SHA_1"));
    w.create(with(hyper.clone(), "name", json!("hpcs"))).await.is(201);

    let rotate = format!("POST /keys/{}/actions/rotate", imported.id());
    let post = |action: &str| format!("POST /keys/{}/actions/{action}", imported.id());
    let wrapped = w.call(&post("wrap"), &json!({"plaintext": "AAAA"})).await.is(200);
    w.call(&rotate, &hyper).await.is(204);
    let ask = json!({"ciphertext": wrapped.body["ciphertext"]});
    assert_eq!(w.call(&post("unwrap"), &ask).await.is(200).body["plaintext"], "AAAA");

    // What is refused, and how.
    let other = sealed(&token, &[0x3e; 32], &[1; 12], Oaep::Sha256);
    let wrong_iv = with(key.clone(), "iv", json!(STANDARD.encode([2; 12])));
    w.create(wrong_iv).await.refused(400, "INCORRECT_NONCE_IV_ERR");
    let wrong_key = with(key.clone(), "payload", other["payload"].clone());
    w.create(wrong_key).await.refused(400, "INCORRECT_NONCE_IV_ERR");
    let stranger = with(token.clone(), "nonce", json!(STANDARD.encode([0; 12])));
    let stranger = sealed(&stranger, &material, &[1; 12], Oaep::Sha256);
    w.create(with(stranger, "name", json!("xx"))).await.refused(400, "INCORRECT_NONCE_ERR");
    for bad in [
        with(key.clone(), "encryptionAlgorithm", json!("RSAES_OAEP_SHA_1")),
        with(key.clone(), "encryptionAlgorithm", json!("RSA")),
        with(key.clone(), "iv", json!(STANDARD.encode([1; 13]))),
        with(key.clone(), "iv", null.clone()),
        with(key.clone(), "encryptedNonce", null.clone()),
        with(key.clone(), "payload", null.clone()),
        with(key.clone(), "payload", json!(STANDARD.encode([7; 512]))),
        with(key.clone(), "extractable", json!(true)),
    ] {
        w.create(bad).await.refused(400, "INVALID_FIELD_ERR");
    }
    let generated = format!("POST /keys/{}/actions/rotate", w.root().await);
    w.call(&generated, &fields).await.refused(400, "INVALID_QUERY_PARAM_ERR");

    // Retrievals end before imports do.
    w.call("GET /import_token", &null).await.is(200);
    w.call("GET /import_token", &null).await.refused(409, "IMPORT_TOKEN_RETRIEVALS_ERR");
    w.create(key.clone()).await.is(201);
    w.advance(1200);
    w.call("GET /import_token", &null).await.refused(409, "IMPORT_TOKEN_EXPIRED_ERR");
    w.create(key).await.refused(409, "IMPORT_TOKEN_EXPIRED_ERR");
    w.advance(86_401);
    crate::keys::clock::turn(&w.app).unwrap();
    w.call("GET /import_token", &null).await.refused(404, "IMPORT_TOKEN_NOT_FOUND_ERR");
    assert_eq!(w.audited("kms.import-token.create"), 6);
    assert_eq!(w.audited("kms.import-token.read"), 6);

    let files: Vec<u8> = w.files().concat();
    let nonce = STANDARD.decode(token["nonce"].as_str().unwrap()).unwrap();
    for mark in [&material[..], &nonce] {
        assert!(!files.windows(mark.len()).any(|window| window == mark));
    }
}
