//! Counts the entries of a request's repeated fields before anything is decoded.
//!
//! An entry of two bytes takes a hundred times as much when it is decoded, so a request that is small on
//! the wire need not be small in memory. A count is cheap: it skips from field to field.

use driftless_proto::v1;
use prost::Message;
use prost::encoding::decode_varint;
use tonic::Status;

/// How many entries a repeated field may have.
#[derive(Debug)]
pub(super) struct Repeated {
    /// The number of the field, after those of the messages that it is in.
    pub(super) path: &'static [u32],
    most: usize,
    /// What the entries are, for the error.
    what: &'static str,
    /// Whether entries are numbers, several of which share a field when they are packed.
    packed: bool,
}

/// How many watches one report may name.
const WATCHES: usize = 1024;

/// How many labels a client may have.
const LABELS: usize = 32;

/// How many features a client may name: far more than there are.
const FEATURES: usize = 64;

const fn labels(path: &'static [u32]) -> Repeated {
    Repeated {
        path,
        most: LABELS,
        what: "labels of the client",
        packed: false,
    }
}

/// A message that clients send.
pub(super) trait Request: Message + Default {
    /// The limits on its repeated fields, of which a test finds those that have none.
    const REPEATED: &'static [Repeated];
}

impl Request for v1::WatchRequest {
    const REPEATED: &'static [Repeated] = &[
        labels(&[3, 2]),
        Repeated {
            path: &[4],
            most: FEATURES,
            what: "features",
            packed: true,
        },
    ];
}

impl Request for v1::GetRequest {
    const REPEATED: &'static [Repeated] = &[labels(&[2, 2])];
}

impl Request for v1::ReportRequest {
    const REPEATED: &'static [Repeated] = &[
        labels(&[1, 2]),
        Repeated {
            path: &[2],
            most: WATCHES,
            what: "watches",
            packed: false,
        },
    ];
}

/// Refuses a message with too many entries.
pub(super) fn check(message: &[u8], limits: &[Repeated]) -> Result<(), Status> {
    for limit in limits {
        let (count, most, what) = (
            count(message, limit.path, limit.packed),
            limit.most,
            limit.what,
        );
        if count > most {
            return Err(Status::invalid_argument(format!(
                "the request has {count} {what}; at most {most} are allowed"
            )));
        }
    }
    Ok(())
}

/// The entries of the field at this path, in all messages that are there. It never counts fewer than a
/// decoder makes; where the message is not valid, it ends as a decoder does.
fn count(message: &[u8], path: &[u32], packed: bool) -> usize {
    let Some((&number, inner)) = path.split_first() else {
        return 1;
    };
    fields(message)
        .filter(|field| field.number == number)
        .map(|field| match field.content {
            Some(content) if inner.is_empty() && packed => {
                content.iter().filter(|byte| **byte < 0x80).count()
            }
            Some(content) => count(content, inner, packed),
            None => 1,
        })
        .sum()
}

/// A field of a message.
pub(super) struct Field<'a> {
    pub(super) number: u32,
    /// What it holds, unless it is a number.
    pub(super) content: Option<&'a [u8]>,
}

/// The fields of a message, up to the first that is not valid. Groups, which nobody sends, are not
/// skipped: what is in them counts.
pub(super) fn fields(mut rest: &[u8]) -> impl Iterator<Item = Field<'_>> {
    const VARINT: u64 = 0;
    const SIXTY_FOUR_BITS: u64 = 1;
    const BYTES: u64 = 2;
    const GROUP: u64 = 3;
    const GROUP_END: u64 = 4;
    const THIRTY_TWO_BITS: u64 = 5;
    std::iter::from_fn(move || {
        let key = decode_varint(&mut rest).ok()?;
        let number = u32::try_from(key >> 3).ok()?;
        let len = match key & 7 {
            VARINT => {
                decode_varint(&mut rest).ok()?;
                0
            }
            SIXTY_FOUR_BITS => 8,
            BYTES => usize::try_from(decode_varint(&mut rest).ok()?).ok()?,
            GROUP | GROUP_END => 0,
            THIRTY_TWO_BITS => 4,
            _ => return None,
        };
        let (content, after) = rest.split_at_checked(len)?;
        rest = after;
        Some(Field {
            number,
            content: (key & 7 == BYTES).then_some(content),
        })
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn info(labels: usize) -> v1::ClientInfo {
        v1::ClientInfo {
            labels: (0..labels)
                .map(|n| (n.to_string(), String::new()))
                .collect(),
            ..Default::default()
        }
    }

    fn refused<M: Request>(message: &M) -> Option<String> {
        let refused = check(&message.encode_to_vec(), M::REPEATED).err();
        refused.map(|status| status.message().to_owned())
    }

    #[test]
    fn requests_with_too_many_entries_are_refused() {
        let watch = |labels, features| v1::WatchRequest {
            client: Some(info(labels)),
            features: vec![1; features],
            ..Default::default()
        };
        let get = |labels| v1::GetRequest {
            client: Some(info(labels)),
            ..Default::default()
        };
        let report = |labels, watches| v1::ReportRequest {
            client: Some(info(labels)),
            watches: vec![v1::WatchReport::default(); watches],
        };
        assert_eq!(refused(&watch(32, 64)), None);
        assert_eq!(refused(&get(32)), None);
        assert_eq!(refused(&report(32, 1024)), None);
        for (refused, what) in [
            (refused(&watch(33, 0)), "33 labels"),
            (refused(&watch(0, 65)), "65 features"),
            (refused(&get(33)), "33 labels"),
            (refused(&report(33, 0)), "33 labels"),
            (refused(&report(0, 1025)), "1025 watches"),
        ] {
            let refused = refused.expect(what);
            assert!(refused.contains(what), "{refused:?} does not say {what:?}");
        }
    }

    /// A decoder merges what comes twice.
    #[test]
    fn entries_of_a_repeated_message_are_added_up() {
        let twice = |message: &[u8]| [message, message].concat();
        let labels = v1::GetRequest {
            client: Some(info(17)),
            ..Default::default()
        };
        let labels = twice(&labels.encode_to_vec());
        assert_eq!(count(&labels, &[2, 2], false), 34);
        assert!(check(&labels, v1::GetRequest::REPEATED).is_err());
        // One by one, as a decoder takes them as well.
        let unpacked = [4 << 3, 1].repeat(65);
        assert_eq!(count(&unpacked, &[4], true), 65);
        assert!(check(&unpacked, v1::WatchRequest::REPEATED).is_err());
    }

    /// A piece of a message: valid, or anything.
    fn piece() -> impl Strategy<Value = Vec<u8>> {
        let report = (0..3_usize, 0..4_usize).prop_map(|(labels, watches)| {
            let report = v1::ReportRequest {
                client: Some(info(labels)),
                watches: vec![v1::WatchReport::default(); watches],
            };
            report.encode_to_vec()
        });
        prop_oneof![report, proptest::collection::vec(any::<u8>(), 0..6)]
    }

    proptest! {
        #[test]
        fn no_entry_of_a_decoded_message_is_missed(
            pieces in proptest::collection::vec(piece(), 0..6),
        ) {
            let message = pieces.concat();
            if let Ok(report) = v1::ReportRequest::decode(&message[..]) {
                prop_assert!(count(&message, &[2], false) >= report.watches.len());
                let labels = report.client.map_or(0, |client| client.labels.len());
                prop_assert!(count(&message, &[1, 2], false) >= labels);
            }
        }
    }

    /// The bytes of a field that is there once.
    fn content(message: &[u8], number: u32) -> &[u8] {
        let mut found = fields(message).filter(|field| field.number == number);
        found.find_map(|field| field.content).unwrap_or_default()
    }

    fn name(message: &[u8], number: u32) -> String {
        String::from_utf8(content(message, number).to_vec()).unwrap()
    }

    fn each(message: &[u8], number: u32) -> impl Iterator<Item = &[u8]> {
        let found = fields(message).filter(move |field| field.number == number);
        found.filter_map(|field| field.content)
    }

    /// Collects the paths of the repeated fields of a message and of those in it.
    fn repeated(
        types: &HashMap<String, &[u8]>,
        message: &str,
        path: &mut Vec<u32>,
        found: &mut Vec<Vec<u32>>,
    ) {
        const REPEATED: i32 = 3;
        #[derive(Clone, PartialEq, prost::Message)]
        struct Field {
            #[prost(int32, tag = "3")]
            number: i32,
            #[prost(int32, tag = "4")]
            label: i32,
            #[prost(string, tag = "6")]
            type_name: String,
        }
        for field in each(types[message], 2) {
            let field = Field::decode(field).unwrap();
            path.push(u32::try_from(field.number).unwrap());
            if field.label == REPEATED {
                found.push(path.clone());
            }
            if types.contains_key(&field.type_name) {
                repeated(types, &field.type_name, path, found);
            }
            path.pop();
        }
    }

    /// Also that of a field that the contract gets tomorrow.
    #[test]
    fn every_repeated_field_of_a_request_has_a_limit() {
        let (file, service) = each(driftless_proto::FILE_DESCRIPTOR_SET, 1)
            .find_map(|file| Some((file, each(file, 6).next()?)))
            .unwrap();
        let package = name(file, 2);
        let mut types = HashMap::new();
        for message in each(file, 4) {
            let outer = format!(".{package}.{}", name(message, 1));
            for inner in each(message, 3) {
                types.insert(format!("{outer}.{}", name(inner, 1)), inner);
            }
            types.insert(outer, message);
        }
        let mut requests = 0;
        for method in each(service, 2) {
            let request = name(method, 2);
            let limits = match request.rsplit('.').next().unwrap() {
                "WatchRequest" => v1::WatchRequest::REPEATED,
                "GetRequest" => v1::GetRequest::REPEATED,
                "ReportRequest" => v1::ReportRequest::REPEATED,
                other => panic!("no limits for {other}"),
            };
            let (mut found, mut limited) = (Vec::new(), Vec::new());
            repeated(&types, &request, &mut Vec::new(), &mut found);
            limited.extend(limits.iter().map(|limit| limit.path.to_vec()));
            found.sort();
            limited.sort();
            assert_eq!(found, limited, "{request}");
            requests += 1;
        }
        assert_eq!(requests, 3);
    }
}
