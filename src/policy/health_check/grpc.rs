//! The messages of `grpc.health.v1`, as far as a check needs them: two fields, by hand.
//! See <https://github.com/grpc/grpc/blob/master/doc/health-checking.md>.

use super::state::Status;

/// The service.
pub const SERVICE: &str = "grpc.health.v1.Health";

/// Its method.
pub const METHOD: &str = "Check";

/// A `HealthCheckRequest`: which service; empty = the whole server.
#[must_use]
pub fn request(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        push_bytes(&mut message, 1, service.as_bytes());
    }
    message
}

/// Appends a field of bytes, and that is a text or a message too. Fields up to 15.
pub fn push_bytes(message: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    message.push(field << 3 | 2);
    push_varint(message, bytes.len() as u64);
    message.extend_from_slice(bytes);
}

fn push_varint(message: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        message.push(number as u8 | 0x80);
        number >>= 7;
    }
    message.push(number as u8);
}

/// What a `HealthCheckResponse` says; `None` if it is none. Fields that are not known are passed over, and of one that comes twice the
/// last counts, as protobuf wants it.
#[must_use]
pub fn response(mut message: &[u8]) -> Option<Status> {
    let mut status = 0;
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        match (tag >> 3, tag & 7) {
            (0, _) => return None,
            (1, 0) => status = varint(&mut message)?,
            (_, 0) => drop(varint(&mut message)?),
            (_, 1) => message = message.get(8..)?,
            (_, 2) => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            (_, 5) => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(match status {
        1 => Status::Up,
        2 => Status::OutOfService,
        // UNKNOWN, SERVICE_UNKNOWN, and what a later version may add: not SERVING.
        _ => Status::Unsure,
    })
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first()?;
        *message = rest;
        // The last of ten bytes has room for one bit.
        if shift == 63 && *byte > 1 {
            return None;
        }
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn messages_are_those_of_grpc() {
        let vectors: Value = serde_json::from_str(include_str!("../../../tests/vectors/15_grpc_health.json")).unwrap();
        for case in vectors["request_hex"].as_array().unwrap() {
            let message = request(case["service"].as_str().unwrap());
            assert_eq!(message, hex(case["msg"].as_str().unwrap()), "{case}");
        }
        for case in vectors["response_hex"].as_array().unwrap() {
            let want = match case["status"].as_str().unwrap() {
                "SERVING" => Status::Up,
                "NOT_SERVING" => Status::OutOfService,
                _ => Status::Unsure,
            };
            assert_eq!(response(&hex(case["msg"].as_str().unwrap())), Some(want), "{case}");
        }
        assert_eq!(vectors["path_check"], format!("/{SERVICE}/{METHOD}"));
    }

    #[test]
    fn long_names_have_long_lengths() {
        let message = request(&"x".repeat(300));
        assert_eq!(message[..3], [0x0a, 0xac, 0x02]);
        assert_eq!(message.len(), 303);
    }

    #[test]
    fn what_is_not_known_is_passed_over_and_what_is_no_message_refused() {
        for (message, want) in [
            (&b"\x12\x03abc\x08\x01"[..], Some(Status::Up)),
            (b"\x08\x02\x08\x01", Some(Status::Up)),
            (b"\x21\0\0\0\0\0\0\0\0\x08\x01\x2d\0\0\0\0", Some(Status::Up)),
            (b"\x08\x81\x80\x80\x80\x80\x80\x80\x80\x80\x01", Some(Status::Unsure)),
            (b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", None),
            (b"\x08", None),
            (b"\x12\x7fabc", None),
            (b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\x7f", None),
            (b"\x0b", None),
            (b"\0\0", None),
        ] {
            assert_eq!(response(message), want, "{message:?}");
        }
    }
}
