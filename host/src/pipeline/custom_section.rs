//! Custom sections of components, as the build script and `sluice plugin build` append them. Invariant: what is appended leaves
//! everything before it as it was. Never reads one. (The build script includes this file by its path.)

/// The custom section that holds the JSON Schema of a component's configs (`wit/sluice.wit`).
pub const CONFIG_SCHEMA: &str = "sluice:config-schema";

/// Appends one: id 0, the length of what follows, the name with its length, the bytes (binary format of the component model,
/// which has it from the core specification §5.5.3).
pub fn append(component: &mut Vec<u8>, name: &str, bytes: &[u8]) {
    let mut content = Vec::with_capacity(name.len() + bytes.len() + 5);
    push_length(&mut content, name.len());
    content.extend_from_slice(name.as_bytes());
    content.extend_from_slice(bytes);
    component.push(0);
    push_length(component, content.len());
    component.extend_from_slice(&content);
}

/// Unsigned LEB128.
fn push_length(out: &mut Vec<u8>, mut length: usize) {
    while length >= 0x80 {
        out.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
}
