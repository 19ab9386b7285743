//! A record as bytes, as it lies in the audit log's segments (`docs/formats.md`).

use claviger_domain::audit::{Credential, Data, Record};
use claviger_domain::id::UnixMs;
use std::net::IpAddr;

/// The kind of an entry whose body [`encode`] made.
pub const ACT: u16 = 1;

/// The body of a record; its time stands beside it. None if its facts are longer than an entry
/// may be.
pub fn encode(record: &Record) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(384);
    let credential = record
        .credential
        .and_then(|credential| Credential::ALL.into_iter().position(|other| other == credential));
    out.push(credential.map_or(0, |at| at as u8 + 1));
    out.extend_from_slice(&record.status.to_be_bytes());
    match record.address {
        None => out.push(0),
        Some(IpAddr::V4(address)) => {
            out.push(4);
            out.extend_from_slice(&address.octets());
        }
        Some(IpAddr::V6(address)) => {
            out.push(6);
            out.extend_from_slice(&address.octets());
        }
    }
    for text in [&record.who, &*record.action, &record.target, &*record.reason, &record.correlation]
    {
        let text = Record::kept(text);
        out.extend_from_slice(&u16::try_from(text.len()).ok()?.to_be_bytes());
        out.extend_from_slice(text.as_bytes());
    }
    if record.data != Data::default() {
        serde_json::to_writer(&mut out, &record.data).ok()?;
    }
    (out.len() <= claviger_audit::BODY_MAX).then_some(out)
}

/// The record with this body; none if it is no body of an act.
pub fn decode(at: UnixMs, body: &[u8]) -> Option<Record> {
    let mut rest = body;
    let credential = match take::<1>(&mut rest)? {
        [0] => None,
        [at] => Some(*Credential::ALL.get(usize::from(at) - 1)?),
    };
    let status = u16::from_be_bytes(take(&mut rest)?);
    let address = match take::<1>(&mut rest)? {
        [0] => None,
        [4] => Some(IpAddr::from(take::<4>(&mut rest)?)),
        [6] => Some(IpAddr::from(take::<16>(&mut rest)?)),
        _ => return None,
    };
    let mut text = || {
        let len = u16::from_be_bytes(take(&mut rest)?);
        let (text, behind) = rest.split_at_checked(usize::from(len))?;
        rest = behind;
        String::from_utf8(text.to_vec()).ok()
    };
    let (who, action, target) = (text()?, text()?, text()?);
    let (reason, correlation) = (text()?, text()?);
    let data = match rest {
        [] => Data::default(),
        json => serde_json::from_slice(json).ok()?,
    };
    Some(Record {
        at,
        who,
        credential,
        address,
        action: action.into(),
        target,
        status,
        reason: reason.into(),
        correlation,
        data,
    })
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, behind) = rest.split_first_chunk::<N>()?;
    *rest = behind;
    Some(*taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use claviger_domain::audit::TEXT_MAX;

    fn record(address: Option<&str>, credential: Option<Credential>, data: Data) -> Record {
        Record {
            at: UnixMs(1_800_000_000_123),
            who: "IBMid-1".to_owned(),
            credential,
            address: address.map(|text| text.parse().expect("an address")),
            action: "kms.secrets.wrap".into(),
            target: "crn:v1:bluemix:public:kms:local:a/0:i:key:k".to_owned(),
            status: 200,
            reason: "".into(),
            correlation: "c".to_owned(),
            data,
        }
    }

    #[test]
    fn what_is_read_is_what_was_written() {
        let data =
            Data { uri: "/api/v2/keys?x=\u{e9}".to_owned(), total: Some(7), ..Data::default() };
        for record in [
            record(None, None, Data::default()),
            record(Some("192.0.2.7"), Some(Credential::Token), data.clone()),
            record(Some("2001:db8::1"), Some(Credential::Host), data),
            record(None, Some(Credential::Certificate), Data::default()),
        ] {
            let body = encode(&record).expect("fits");
            assert_eq!(decode(record.at, &body), Some(record));
        }
    }

    #[test]
    fn long_texts_are_cut_and_nonsense_is_no_record() {
        let mut long = record(None, None, Data::default());
        long.who = "\u{e9}".repeat(5000);
        let body = encode(&long).expect("fits");
        let read = decode(long.at, &body).expect("reads");
        assert_eq!(read.who, "\u{e9}".repeat(TEXT_MAX));
        long.data.uri = "x".repeat(1 << 20);
        assert_eq!(encode(&long), None);
        for len in 0..body.len() {
            assert_eq!(decode(UnixMs(0), &body[..len]), None, "{len}");
        }
        assert_eq!(decode(UnixMs(0), &[9, 0, 200, 0]), None);
    }
}
