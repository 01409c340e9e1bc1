//! What the targets share.

/// A `.trim` file of one section, with the right length and checksum.
pub fn file(kind: u8, content: &[u8]) -> Vec<u8> {
    let mut section = Vec::new();
    let mut length = content.len();
    while length >= 128 {
        section.push(length as u8 | 0x80);
        length >>= 7;
    }
    section.push(length as u8);
    let mut file = [b"TRIM\x01", &[kind][..], &section, content].concat();
    file.extend(crc32fast::hash(&file).to_le_bytes());
    file
}
