//! Values as bytes, in postcard's encoding.
//!
//! What fits into a job's place is written on the stack: a worker with a short argument and a short
//! result does not touch the heap for them, and each page that it does not touch is one that the
//! kernel need not copy.

use postcard::ser_flavors::Flavor;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::jobs::INLINE;

/// Encoded bytes.
pub(super) struct Encoded {
    inline: [u8; INLINE],
    used: usize,
    /// All of the bytes, once there are too many.
    spilled: Vec<u8>,
}

impl Encoded {
    /// Not a constant: that would be copied from a page of constants, which a fork does not map.
    #[inline]
    fn empty() -> Encoded {
        Encoded {
            inline: [0; INLINE],
            used: 0,
            spilled: Vec::new(),
        }
    }

    /// Encodes a value, or says why it cannot be encoded.
    pub(super) fn of<T: Serialize>(value: &T) -> Result<Encoded, String> {
        let mut serializer = postcard::Serializer {
            output: Encoded::empty(),
        };
        match value.serialize(&mut serializer) {
            Ok(()) => Ok(serializer.output),
            Err(error) => Err(error.to_string()),
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self.spilled.is_empty() {
            true => &self.inline[..self.used],
            false => &self.spilled,
        }
    }

    #[inline]
    fn push(&mut self, byte: u8) {
        match self.inline.get_mut(self.used) {
            Some(room) if self.spilled.is_empty() => {
                *room = byte;
                self.used += 1;
            }
            _ if !self.spilled.is_empty() => self.spilled.push(byte),
            _ => self.spill(&[byte]),
        }
    }

    fn extend(&mut self, bytes: &[u8]) {
        let end = self.used + bytes.len();
        match self.inline.get_mut(self.used..end) {
            Some(room) if self.spilled.is_empty() => {
                room.copy_from_slice(bytes);
                self.used = end;
            }
            _ => self.spill(bytes),
        }
    }

    #[cold]
    fn spill(&mut self, bytes: &[u8]) {
        if self.spilled.is_empty() {
            self.spilled.reserve(self.used + bytes.len());
            self.spilled.extend_from_slice(&self.inline[..self.used]);
        }
        self.spilled.extend_from_slice(bytes);
    }
}

impl From<&str> for Encoded {
    /// A message.
    fn from(text: &str) -> Encoded {
        let mut encoded = Encoded::empty();
        encoded.extend(text.as_bytes());
        encoded
    }
}

impl Flavor for Encoded {
    type Output = Encoded;

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.push(byte);
        Ok(())
    }

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        match bytes.len() {
            // A number, byte by byte: copying bytes is a call of the C library, and one more page
            // to be mapped.
            ..=10 if self.spilled.is_empty() => bytes.iter().for_each(|&byte| self.push(byte)),
            _ => self.extend(bytes),
        }
        Ok(())
    }

    fn finalize(self) -> postcard::Result<Encoded> {
        Ok(self)
    }
}

/// Decodes a value from all of the bytes.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let mut deserializer = postcard::Deserializer::from_bytes(bytes);
    let value = T::deserialize(&mut deserializer).map_err(|error| error.to_string())?;
    match deserializer.finalize() {
        Ok([]) => Ok(value),
        Ok(rest) => Err(format!("{} bytes are left over", rest.len())),
        Err(error) => Err(error.to_string()),
    }
}
