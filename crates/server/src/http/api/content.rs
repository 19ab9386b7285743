//! Bodies: a media type, and the schema of the type that is read or written.

use claviger_wire::kp::Envelope;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

/// A body.
#[derive(Clone, Copy)]
pub(crate) struct Content {
    pub(crate) media_type: &'static str,
    pub(crate) schema: fn(&mut SchemaGenerator) -> Schema,
}

pub(crate) const JSON: &str = "application/json";

/// A `T` in JSON.
pub(crate) const fn json<T: JsonSchema>() -> Content {
    typed::<T>(JSON)
}

/// A `T` in JSON, by a name of its own.
pub(crate) const fn typed<T: JsonSchema>(media_type: &'static str) -> Content {
    Content { media_type, schema: |generator| generator.subschema_for::<T>() }
}

/// Key Protect's envelope around any number of `T`.
pub(crate) const fn envelope<T: JsonSchema>(media_type: &'static str) -> Content {
    Content { media_type, schema: |generator| generator.subschema_for::<Envelope<T>>() }
}

/// What is not JSON.
pub(crate) const fn text(media_type: &'static str) -> Content {
    Content { media_type, schema: |_| json_schema!({ "type": "string" }) }
}

/// To be sent: Key Protect's envelope around one `T`. Its media types are not looked at.
pub(crate) const fn one<T: JsonSchema>() -> Content {
    Content {
        media_type: JSON,
        schema: |generator| {
            let one = generator.subschema_for::<T>();
            sent(
                &json_schema!({ "const": 1 }),
                &json_schema!({
                    "type": "array", "minItems": 1, "maxItems": 1, "items": one,
                }),
            )
        },
    }
}

/// To be sent: the envelope around at least one `T`.
pub(crate) const fn several<T: JsonSchema>() -> Content {
    Content {
        media_type: JSON,
        schema: |generator| {
            let each = generator.subschema_for::<T>();
            sent(
                &json_schema!({
                    "type": "integer", "minimum": 1, "description": "Number of resources.",
                }),
                &json_schema!({ "type": "array", "minItems": 1, "items": each }),
            )
        },
    }
}

fn sent(total: &Schema, resources: &Schema) -> Schema {
    json_schema!({
        "type": "object",
        "properties": {
            "metadata": {
                "type": "object",
                "properties": { "collectionType": { "type": "string" }, "collectionTotal": total },
                "required": ["collectionType", "collectionTotal"],
            },
            "resources": resources,
        },
        "required": ["metadata", "resources"],
    })
}

/// Either of several, for what some ask by one path.
pub(crate) const fn any_of<A: JsonSchema, B: JsonSchema, C: JsonSchema>() -> Content {
    Content {
        media_type: JSON,
        schema: |generator| {
            let any = [
                generator.subschema_for::<A>(),
                generator.subschema_for::<B>(),
                generator.subschema_for::<C>(),
            ];
            json_schema!({ "anyOf": any })
        },
    }
}
