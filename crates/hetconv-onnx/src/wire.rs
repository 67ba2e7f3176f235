//! A protobuf message as the list of its fields' bytes, so that all but a few can be kept as they are.

use prost::bytes::Bytes;
use prost::encoding::{
    DecodeContext, WireType, check_wire_type, decode_key, decode_varint, encode_key, encode_varint, skip_field,
};
use prost::{DecodeError, Message};

/// One field of a message.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    pub tag: u32,
    /// Its bytes, key included.
    pub bytes: Bytes,
    wire_type: WireType,
    /// What follows the key, a length left out.
    content: Bytes,
}

impl Field {
    /// What is in a length-delimited field, such as a message.
    pub fn payload(&self) -> Result<&Bytes, DecodeError> {
        check_wire_type(WireType::LengthDelimited, self.wire_type)?;
        Ok(&self.content)
    }
}

/// The fields of a message, in their order; they share its bytes.
pub(crate) fn fields(message: &Bytes) -> Result<Vec<Field>, DecodeError> {
    let mut fields = Vec::new();
    let mut rest = message.clone();
    while !rest.is_empty() {
        let start = message.len() - rest.len();
        let (tag, wire_type) = decode_key(&mut rest)?;
        let mut content = rest.clone();
        skip_field(wire_type, tag, &mut rest, DecodeContext::default())?;
        content.truncate(content.len() - rest.len());
        if wire_type == WireType::LengthDelimited {
            decode_varint(&mut content)?;
        }
        fields.push(Field { tag, bytes: message.slice(start..message.len() - rest.len()), wire_type, content });
    }
    Ok(fields)
}

/// Appends a length-delimited field.
pub(crate) fn put_bytes(tag: u32, payload: &[u8], to: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, to);
    encode_varint(payload.len() as u64, to);
    to.extend_from_slice(payload);
}

/// Appends a message as a field.
pub(crate) fn put(tag: u32, message: &impl Message, to: &mut Vec<u8>) {
    put_bytes(tag, &message.encode_to_vec(), to);
}
