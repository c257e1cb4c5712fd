//! Protocol Buffers' wire format, read in place.

/// The value of a field, by how it is written.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// A whole number of any kind.
    Number(u64),
    /// A text, bytes, a message.
    Bytes(&'a [u8]),
    /// Eight bytes, such as a double.
    Eight([u8; 8]),
    /// Four bytes.
    Four,
}

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// They end too soon.
    Cut,
    /// They are no fields.
    Wrong,
}

/// Passes each field of a message to `each`. Groups, which no version of these messages has had,
/// are malformed: skipping them takes a stack.
///
/// # Errors
/// The message is malformed; fields before that have been passed.
pub fn fields<'a>(
    message: &'a [u8],
    mut each: impl FnMut(u32, Value<'a>),
) -> Result<(), Malformed> {
    let mut rest = message;
    while !rest.is_empty() {
        let tag = u32::try_from(varint(&mut rest)?).map_err(|_| Malformed::Wrong)?;
        let value = match tag & 7 {
            0 => Value::Number(varint(&mut rest)?),
            1 => {
                let bytes = take(&mut rest, 8)?;
                Value::Eight(bytes.try_into().map_err(|_| Malformed::Cut)?)
            }
            2 => {
                let length = usize::try_from(varint(&mut rest)?).unwrap_or(usize::MAX);
                Value::Bytes(take(&mut rest, length)?)
            }
            5 => take(&mut rest, 4).map(|_| Value::Four)?,
            _ => return Err(Malformed::Wrong),
        };
        match tag >> 3 {
            0 => return Err(Malformed::Wrong),
            number => each(number, value),
        }
    }
    Ok(())
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], Malformed> {
    let (taken, after) = rest.split_at_checked(length).ok_or(Malformed::Cut)?;
    *rest = after;
    Ok(taken)
}

/// Seven bits a byte, the lowest first; at most ten bytes, of which the last can hold one bit.
fn varint(rest: &mut &[u8]) -> Result<u64, Malformed> {
    let mut number = 0u64;
    for place in 0..10u32 {
        let [byte] = *take(rest, 1)? else {
            return Err(Malformed::Cut);
        };
        if place == 9 && byte > 1 {
            return Err(Malformed::Wrong);
        }
        number |= u64::from(byte & 0x7f).wrapping_shl(place.wrapping_mul(7));
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err(Malformed::Wrong)
}
