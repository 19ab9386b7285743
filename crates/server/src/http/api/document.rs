//! What an [`Api`] holds, as OpenAPI 3.1.

use super::content::{self, Content};
use super::parameters::{self, Header};
use super::{Api, Kind, Placed};
use crate::http::error::Form;
use claviger_wire::access::AccessError;
use claviger_wire::iam::TokenError;
use claviger_wire::kp::{self, Envelope, ErrorBody};
use claviger_wire::ks::ServiceError;
use claviger_wire::rc::ResourceError;
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

const SCHEMAS: &str = "#/components/schemas/";

/// The document, as text.
pub(crate) fn of(api: &Api) -> String {
    let mut text = serde_json::to_string_pretty(&value(api)).expect("the document is valid JSON");
    text.push('\n');
    text
}

fn value(api: &Api) -> Value {
    let mut schemas = Schemas::new();
    let mut responses = BTreeMap::new();
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for placed in &api.placed {
        let operation = operation(placed, &mut schemas, &mut responses);
        let item = paths.entry(&placed.path).or_default();
        if let Some(prefix) = placed.prefix {
            item.insert("servers".to_owned(), json!([{ "url": "/" }, { "url": prefix }]));
        }
        item.insert(placed.method.to_owned(), operation);
    }
    let tags: BTreeSet<&str> = api.placed.iter().map(|placed| placed.tag).collect();
    let tags: Vec<Value> = tags.into_iter().map(|tag| json!({ "name": tag })).collect();
    let parameters: Map<String, Value> =
        [parameters::INSTANCE, parameters::RING, parameters::CORRELATION]
            .map(|(key, header)| (key.to_owned(), asked(&header, key == parameters::INSTANCE.0)))
            .into_iter()
            .collect();
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Claviger",
            "summary": "Root keys, and clusters encrypted under them.",
            "description": "The key service (IBM Key Protect v2), its tokens and access policies (IBM \
                Cloud IAM) and instances (Resource Controller), the cluster service (IBM Cloud Kubernetes \
                Service and our own under /v3) and the agents' API. Content types of requests \
                are not looked at. Every GET can be asked as HEAD.",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "tags": tags,
        "paths": paths,
        "components": {
            "parameters": parameters,
            "headers": {
                "Correlation": told(&parameters::CORRELATION.1),
                "RetryAfter": {
                    "description": "Seconds to wait, at most 5.",
                    "schema": { "type": "integer", "minimum": 0, "maximum": 5 },
                },
            },
            "responses": responses,
            "securitySchemes": {
                "token": {
                    "type": "http", "scheme": "bearer", "bearerFormat": "JWT",
                    "description": "A token of POST /identity/token.",
                },
                "node": {
                    "type": "mutualTLS",
                    "description": "A node's certificate, of POST /agent/v1/join.",
                },
            },
        },
    });
    schemas.settle(&mut document);
    plain(&mut document);
    document
}

fn operation(
    placed: &Placed,
    schemas: &mut Schemas,
    responses: &mut BTreeMap<String, Value>,
) -> Value {
    let Placed { tag, kind, path, said, .. } = placed;
    let names: Vec<&str> =
        path.split('{').skip(1).filter_map(|rest| Some(rest.split_once('}')?.0)).collect();
    let mut parameters: Vec<Value> = names
        .iter()
        .map(|name| {
            let (what, schema) = parameters::of_path(name);
            json!({
                "name": name, "in": "path", "required": true,
                "description": what, "schema": schema,
            })
        })
        .collect();
    parameters.extend(said.query.iter().map(|query| {
        let mut parameter = json!({
            "name": query.name, "in": "query", "required": query.required,
            "description": query.what, "schema": (query.schema)(),
        });
        if !query.required {
            parameter["allowEmptyValue"] = true.into();
        }
        parameter
    }));
    parameters.extend(said.headers.iter().map(|(header, must)| asked(header, *must)));
    let shared = match kind {
        Kind::KeyProtect => &[parameters::INSTANCE, parameters::RING, parameters::CORRELATION][..],
        _ => &[parameters::CORRELATION][..],
    };
    parameters.extend(
        shared.iter().map(|(key, _)| json!({ "$ref": format!("#/components/parameters/{key}") })),
    );

    let mut answers = Map::new();
    for (status, content) in &said.answers {
        let mut headers =
            json!({ (kp::CORRELATION_HEADER): { "$ref": "#/components/headers/Correlation" } });
        for header in &said.tells {
            headers[header.name] = told(header);
        }
        let mut answer = json!({ "description": why(*status), "headers": headers });
        if let Some(content) = content {
            answer["content"] = schemas.answered(content);
        }
        answers.insert(status.to_string(), answer);
    }
    let mut refusals: BTreeSet<u16> =
        kind.refusals().iter().chain(&said.refusals).copied().collect();
    if !names.is_empty() {
        refusals.insert(400);
    }
    if said.takes.is_some() {
        refusals.extend([400, 408, 413]);
    }
    for status in refusals {
        let key = format!("{:?}{status}", kind.form());
        let reference = json!({ "$ref": format!("#/components/responses/{key}") });
        responses.entry(key).or_insert_with(|| refused(kind.form(), status, schemas));
        answers.entry(status.to_string()).or_insert(reference);
    }

    let mut out = json!({
        "operationId": said.id,
        "summary": said.summary,
        "tags": [tag],
        "parameters": parameters,
        "responses": answers,
        "security": match kind {
            Kind::KeyProtect
            | Kind::Resource
            | Kind::Access
            | Kind::Identity
            | Kind::Service => json!([{ "token": [] }]),
            Kind::Node => json!([{ "node": [] }]),
            Kind::Token | Kind::Open => json!([]),
        },
    });
    if said.deprecated {
        out["deprecated"] = true.into();
    }
    if let Some((content, required)) = &said.takes {
        out["requestBody"] =
            json!({ "required": required, "content": schemas.sent(content, *required) });
    }
    out
}

fn asked(header: &Header, required: bool) -> Value {
    json!({
        "name": header.name, "in": "header", "required": required,
        "description": header.what, "schema": (header.schema)(),
    })
}

fn told(header: &Header) -> Value {
    json!({ "description": header.what, "schema": (header.schema)() })
}

/// A refusal of this shape.
fn refused(form: Form, status: u16, schemas: &mut Schemas) -> Value {
    let content = match form {
        Form::KeyProtect => content::typed::<Envelope<ErrorBody>>(kp::ERROR_TYPE),
        Form::Resource => content::json::<ResourceError>(),
        Form::Access => content::json::<AccessError>(),
        Form::Identity => content::json::<TokenError>(),
        Form::Service => content::json::<ServiceError>(),
    };
    let mut headers =
        json!({ (kp::CORRELATION_HEADER): { "$ref": "#/components/headers/Correlation" } });
    if status == 429 || status == 503 {
        headers["Retry-After"] = json!({ "$ref": "#/components/headers/RetryAfter" });
    }
    json!({
        "description": why(status), "headers": headers, "content": schemas.answered(&content),
    })
}

/// What a status means here.
fn why(status: u16) -> &'static str {
    match status {
        200 => "Done.",
        201 => "Made.",
        202 => "Accepted: others will do it.",
        204 => "Done; there is nothing to show.",
        207 => "What became of each.",
        400 => "The request is wrong; the answer says what.",
        401 => "The caller is not known, or may not do this. It is not said which.",
        403 => "The caller may not do this from where he is, or as what he is.",
        404 => "There is no such thing, or the caller cannot see it.",
        408 => "The body did not arrive in time.",
        409 => "As things stand it cannot be done; the answer says why.",
        410 => "The key was deleted already.",
        412 => "What it needs is not so; the answer says what.",
        413 => "The body is too long.",
        422 => "It was understood and cannot be done; the answer says why.",
        429 => {
            "The caller calls too often, too many have failed, or there are as many as there may be."
        }
        500 => "The server's data does not open; its operator must look at the log.",
        503 => "The server cannot do it now; nothing was changed. Try again.",
        507 => "The server cannot write to its disk; nothing was changed.",
        _ => panic!("the status {status} has no description"),
    }
}

/// Schemas of what is sent and of what is answered. One type can have two: a field may be left
/// out of a request that every answer has.
struct Schemas {
    sent: SchemaGenerator,
    answered: SchemaGenerator,
}

impl Schemas {
    fn new() -> Schemas {
        let settings = || {
            SchemaSettings::draft2020_12()
                .with(|s| s.definitions_path = "/components/schemas".into())
        };
        Schemas {
            sent: settings().for_deserialize().into_generator(),
            answered: settings().for_serialize().into_generator(),
        }
    }

    /// References in what is sent are marked, to be told apart until all are known. Where no body
    /// is needed, `null` counts as none.
    fn sent(&mut self, content: &Content, required: bool) -> Value {
        let mut schema = (content.schema)(&mut self.sent).to_value();
        if !required {
            schema = json!({ "anyOf": [schema, { "type": "null" }] });
        }
        rename(&mut schema, &|name| format!("{name}{SENT}"));
        json!({ (content.media_type): { "schema": schema } })
    }

    fn answered(&mut self, content: &Content) -> Value {
        let schema = (content.schema)(&mut self.answered).to_value();
        json!({ (content.media_type): { "schema": schema } })
    }

    /// Puts the schemas into the document: one for both where they are the same, else that of
    /// requests by a name of its own.
    fn settle(mut self, document: &mut Value) {
        let mut all = self.answered.take_definitions(false);
        let sent = self.sent.take_definitions(false);
        let mut differ: BTreeSet<&String> = sent
            .iter()
            .filter(|(n, s)| all.get(*n).is_some_and(|a| a != *s))
            .map(|(n, _)| n)
            .collect();
        // Whoever refers to one that differs, differs.
        loop {
            let before = differ.len();
            for (name, schema) in &sent {
                let mut refers = false;
                names(schema, &mut |to| refers |= differ.iter().any(|d| *d == to));
                if refers && all.contains_key(name) {
                    differ.insert(name);
                }
            }
            if differ.len() == before {
                break;
            }
        }
        let called = |name: &str| match differ.iter().any(|d| *d == name) {
            true => format!("{name}Request"),
            false => name.to_owned(),
        };
        rename(document, &|name| name.strip_suffix(SENT).map_or(name.to_owned(), called));
        for (name, schema) in &sent {
            let mut schema = schema.clone();
            rename(&mut schema, &called);
            let other = all.insert(called(name), schema.clone());
            assert!(
                other.is_none_or(|other| other == schema),
                "two types are called {name}; rename one by #[schemars(rename)]"
            );
        }
        document["components"]["schemas"] = Value::Object(all);
    }
}

/// Marks a reference in what is sent. No type is called so.
const SENT: &str = "!";

/// Calls `with` for every referenced schema.
fn names(schema: &Value, with: &mut impl FnMut(&str)) {
    match schema {
        Value::Object(map) => {
            if let Some(name) = map.get("$ref").and_then(Value::as_str).and_then(schema_name) {
                with(name);
            }
            map.values().for_each(|value| names(value, with));
        }
        Value::Array(all) => all.iter().for_each(|value| names(value, with)),
        _ => {}
    }
}

fn rename(schema: &mut Value, to: &impl Fn(&str) -> String) {
    match schema {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get_mut("$ref")
                && let Some(name) = schema_name(reference)
            {
                *reference = format!("{SCHEMAS}{}", to(name));
            }
            map.values_mut().for_each(|value| rename(value, to));
        }
        Value::Array(all) => all.iter_mut().for_each(|value| rename(value, to)),
        _ => {}
    }
}

fn schema_name(reference: &str) -> Option<&str> {
    reference.strip_prefix(SCHEMAS)
}

/// Descriptions come out of comments in the code: without their links and ends of lines. What a
/// field counts as when it is absent is said only where it may be absent.
fn plain(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if let Some(Value::Array(required)) = map.get("required").cloned()
                && let Some(Value::Object(properties)) = map.get_mut("properties")
            {
                for name in required.iter().filter_map(Value::as_str) {
                    if let Some(Value::Object(property)) = properties.get_mut(name) {
                        property.remove("default");
                    }
                }
            }
            if let Some(Value::String(text)) = map.get_mut("description") {
                *text = text.replace("[`", "`").replace("`]", "`").replace('\n', " ");
            }
            map.values_mut().for_each(plain);
        }
        Value::Array(all) => all.iter_mut().for_each(plain),
        _ => {}
    }
}
