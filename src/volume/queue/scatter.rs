//! Bytes of parts, in buffers of other lengths.

use bytes::BytesMut;

/// Copies what parts have, from the byte `skip` on, into buffers, one after the other. A part is its bytes, or zeros, and its length.
/// The parts are not shorter than the buffers.
pub fn scatter<'a>(parts: impl IntoIterator<Item = (Option<&'a [u8]>, usize)>, mut skip: usize, buffers: &mut [BytesMut]) {
    let mut buffers = buffers.iter_mut();
    let mut rest: &mut [u8] = &mut [];
    for (bytes, length) in parts {
        let (mut at, end) = (skip.min(length), length);
        skip -= at;
        while at < end {
            if rest.is_empty() {
                let Some(next) = buffers.next() else { return };
                rest = next;
                continue;
            }
            let count = rest.len().min(end - at);
            let (filled, behind) = rest.split_at_mut(count);
            match bytes {
                Some(bytes) => filled.copy_from_slice(&bytes[at..at + count]),
                None => filled.fill(0),
            }
            (rest, at) = (behind, at + count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_parts_are_scattered_over_buffers_of_any_length() {
        let parts = [(Some(&[1u8, 2, 3][..]), 3), (None, 2), (Some(&[6, 7, 8, 9][..]), 4)];
        let mut buffers = [0, 1, 4, 3].map(|length| BytesMut::from(&[255; 8][..length]));
        scatter(parts, 1, &mut buffers);
        assert_eq!(buffers, [&[][..], &[2], &[3, 0, 0, 6], &[7, 8, 9]]);
    }
}
