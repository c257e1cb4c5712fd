//! The two messages of `grpc.health.v1.Health`, and the frame that gRPC puts around each.
//!
//! Written by hand: they have two fields, and a generated codec is seven times the code. The bytes
//! come from the network: reading any of them ends in a value or in a named error, copies nothing
//! and takes time in proportion to their length.
//!
//! ```text
//! gRPC over HTTP/2, "Length-Prefixed-Message":
//!   compressed (1 byte, 0 or 1) · length (4 bytes, big endian) · message
//! grpc/health/v1/health.proto:
//!   HealthCheckRequest  { string service = 1; }
//!   HealthCheckResponse { ServingStatus status = 1; }
//! ```

use super::protobuf::{self, Value, fields};

/// Path of the call that asks once.
pub const CHECK: &str = "/grpc.health.v1.Health/Check";

/// The prefix of the paths of all calls of the service.
pub const SERVICE: &str = "/grpc.health.v1.Health/";

/// Bytes in front of a message.
pub const PREFIX: usize = 5;

/// The state of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serving {
    /// Not known.
    Unknown,
    /// It takes calls.
    Serving,
    /// It takes none.
    NotServing,
    /// There is no such service; only `Watch` answers this.
    ServiceUnknown,
}

/// Why bytes are malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// They end too early.
    Cut,
    /// More follows where nothing is to follow.
    Trailing,
    /// The message is compressed, without an agreement on it.
    Compressed,
    /// It is no message of Protocol Buffers.
    Message,
    /// A name that is not UTF-8.
    Text,
}

impl From<protobuf::Malformed> for Malformed {
    fn from(malformed: protobuf::Malformed) -> Self {
        match malformed {
            protobuf::Malformed::Cut => Self::Cut,
            protobuf::Malformed::Wrong => Self::Message,
        }
    }
}

impl Malformed {
    /// What is wrong, for people.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Cut => "the message is cut off",
            Self::Trailing => "more than one message",
            Self::Compressed => "the message is compressed",
            Self::Message => "the message is malformed",
            Self::Text => "the service name is not UTF-8",
        }
    }
}

/// `message` in a frame, not compressed. No message of this module comes near the longest that a
/// frame can hold.
#[must_use]
pub fn frame(message: &[u8]) -> Vec<u8> {
    let mut framed = Vec::with_capacity(PREFIX.saturating_add(message.len()));
    framed.push(0);
    framed.extend_from_slice(
        &u32::try_from(message.len())
            .unwrap_or(u32::MAX)
            .to_be_bytes(),
    );
    framed.extend_from_slice(message);
    framed
}

/// The one message of a whole body.
///
/// # Errors
/// The body is not exactly one frame, or its message is compressed.
pub fn unframe(body: &[u8]) -> Result<&[u8], Malformed> {
    let (prefix, message) = body.split_first_chunk::<PREFIX>().ok_or(Malformed::Cut)?;
    let [flag, length @ ..] = *prefix;
    match flag {
        0 => {}
        1 => return Err(Malformed::Compressed),
        _ => return Err(Malformed::Message),
    }
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    match message.len().cmp(&length) {
        std::cmp::Ordering::Less => Err(Malformed::Cut),
        std::cmp::Ordering::Equal => Ok(message),
        std::cmp::Ordering::Greater => Err(Malformed::Trailing),
    }
}

/// A `HealthCheckRequest`. The empty name asks for the whole server.
#[must_use]
pub fn encode_request(service: &str) -> Vec<u8> {
    // A default value is left out.
    if service.is_empty() {
        Vec::new()
    } else {
        first_field(service.as_bytes())
    }
}

/// A message whose field 1 is these bytes, or the message that they are.
#[must_use]
pub fn first_field(bytes: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(bytes.len().saturating_add(6));
    message.push(SERVICE_FIELD);
    let mut rest = bytes.len();
    while rest >= 0x80 {
        message.push(low(rest) | 0x80);
        rest >>= 7;
    }
    message.push(low(rest));
    message.extend_from_slice(bytes);
    message
}

/// The service that a `HealthCheckRequest` asks for.
///
/// # Errors
/// It is malformed.
pub fn decode_request(message: &[u8]) -> Result<&str, Malformed> {
    let mut service: &[u8] = &[];
    // A repeated field replaces the one before; one of another type is no field of this message.
    fields(message, |number, value| {
        if let (1, Value::Bytes(bytes)) = (number, value) {
            service = bytes;
        }
    })?;
    std::str::from_utf8(service).map_err(|_| Malformed::Text)
}

/// A `HealthCheckResponse`.
#[must_use]
pub const fn encode_response(status: Serving) -> &'static [u8] {
    match status {
        Serving::Unknown => &[],
        Serving::Serving => &[STATUS_FIELD, 1],
        Serving::NotServing => &[STATUS_FIELD, 2],
        Serving::ServiceUnknown => &[STATUS_FIELD, 3],
    }
}

/// The state that a `HealthCheckResponse` reports. A number that has no meaning yet is
/// [`Serving::Unknown`].
///
/// # Errors
/// It is malformed.
pub fn decode_response(message: &[u8]) -> Result<Serving, Malformed> {
    let mut status = 0;
    fields(message, |number, value| {
        if let (1, Value::Number(value)) = (number, value) {
            status = value;
        }
    })?;
    Ok(match status {
        1 => Serving::Serving,
        2 => Serving::NotServing,
        3 => Serving::ServiceUnknown,
        _ => Serving::Unknown,
    })
}

/// Tag of field 1 as bytes, and as a number.
const SERVICE_FIELD: u8 = 1 << 3 | 2;
const STATUS_FIELD: u8 = 1 << 3;

const fn low(number: usize) -> u8 {
    number.to_le_bytes()[0] & 0x7f
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value as Json;

    const VECTORS: &str = include_str!("../../tests/vectors/15_grpc_health.json");

    fn hex(text: &Json) -> Vec<u8> {
        let text = text.as_str().unwrap();
        (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
            .collect()
    }

    #[test]
    fn requests_are_those_of_the_vectors() {
        let vectors: Json = serde_json::from_str(VECTORS).unwrap();
        assert_eq!(vectors["path_check"], CHECK);
        for path in ["path_check", "path_watch", "path_list"] {
            assert!(
                vectors[path].as_str().unwrap().starts_with(SERVICE),
                "{path}"
            );
        }
        let cases = vectors["request_hex"].as_array().unwrap();
        assert!(cases.len() >= 3);
        for case in cases {
            let service = case["service"].as_str().unwrap();
            let (message, framed) = (hex(&case["msg"]), hex(&case["frame"]));
            assert_eq!(encode_request(service), message);
            assert_eq!(frame(&message), framed);
            assert_eq!(unframe(&framed), Ok(&message[..]));
            assert_eq!(decode_request(&message), Ok(service));
        }
    }

    #[test]
    fn responses_are_those_of_the_vectors() {
        let vectors: Json = serde_json::from_str(VECTORS).unwrap();
        let all = [
            Serving::Unknown,
            Serving::Serving,
            Serving::NotServing,
            Serving::ServiceUnknown,
        ];
        let cases = vectors["response_hex"].as_array().unwrap();
        assert_eq!(cases.len(), all.len());
        for case in cases {
            let number = vectors["enum"][case["status"].as_str().unwrap()]
                .as_u64()
                .unwrap();
            let (message, framed) = (hex(&case["msg"]), hex(&case["frame"]));
            let status = all[usize::try_from(number).unwrap()];
            assert_eq!(encode_response(status), message);
            assert_eq!(frame(&message), framed);
            assert_eq!(decode_response(unframe(&framed).unwrap()), Ok(status));
        }
    }

    #[test]
    fn malformed_frames_have_an_error_each() {
        for (body, wrong) in [
            (&b""[..], Malformed::Cut),
            (b"\0\0\0\0", Malformed::Cut),
            (b"\0\0\0\0\x01", Malformed::Cut),
            (b"\0\xff\xff\xff\xffx", Malformed::Cut),
            (b"\0\0\0\0\0\0", Malformed::Trailing),
            (b"\x01\0\0\0\0", Malformed::Compressed),
            (b"\x02\0\0\0\0", Malformed::Message),
        ] {
            assert_eq!(unframe(body), Err(wrong), "{body:?}");
        }
    }

    #[test]
    fn requests_are_read_as_protocol_buffers_are() {
        for (message, read) in [
            // The last of a field counts.
            (&b"\x0a\x01a\x0a\x01b"[..], Ok("b")),
            (b"\x0a\x01a\x0a\0", Ok("")),
            // Fields of the future, of each type, and field 1 as a number.
            (
                b"\x10\x96\x01\x0a\x01a\x1d1234\x21\x3112345678\x2a\x02xy",
                Err(Malformed::Cut),
            ),
            (
                b"\x10\x96\x01\x0a\x01a\x1d1234\x2112345678\x2a\x02xy",
                Ok("a"),
            ),
            (b"\x08\x01", Ok("")),
            // A length in more bytes than it needs.
            (b"\x0a\x81\x80\0a", Ok("a")),
            (b"\x0a", Err(Malformed::Cut)),
            (b"\x0a\x02a", Err(Malformed::Cut)),
            (
                b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01a",
                Err(Malformed::Cut),
            ),
            (
                b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02",
                Err(Malformed::Message),
            ),
            (
                b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
                Err(Malformed::Message),
            ),
            (b"\x02\0", Err(Malformed::Message)),
            (b"\x0b\x0c", Err(Malformed::Message)),
            (b"\x0e", Err(Malformed::Message)),
            (b"\xf8\xff\xff\xff\xff\xff\x01\x01", Err(Malformed::Message)),
            (b"\x0a\x02\xc3\x28", Err(Malformed::Text)),
        ] {
            assert_eq!(decode_request(message), read, "{message:?}");
        }
        for (message, status) in [
            (&b"\x08\x02\x08\x01"[..], Ok(Serving::Serving)),
            (b"\x08\x07", Ok(Serving::Unknown)),
            (
                b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
                Ok(Serving::Unknown),
            ),
            (b"\x0a\x01\x01", Ok(Serving::Unknown)),
            (b"\x08", Err(Malformed::Cut)),
        ] {
            assert_eq!(decode_response(message), status, "{message:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(service in "\\PC{0,300}") {
            let message = encode_request(&service);
            let framed = frame(&message);
            prop_assert_eq!(unframe(&framed).and_then(decode_request), Ok(&service[..]));
        }

        #[test]
        fn any_bytes_are_a_value_or_an_error(
            bytes in prop::collection::vec(any::<u8>(), 0..64)
        ) {
            let _ = unframe(&bytes).and_then(decode_request);
            let _ = decode_request(&bytes);
            let _ = decode_response(&bytes);
            // A message that can be read can be read with a field of the future behind it.
            if let Ok(service) = decode_request(&bytes) {
                let longer = [&bytes[..], b"\x7a\x01x"].concat();
                prop_assert_eq!(decode_request(&longer), Ok(service));
            }
        }
    }
}
