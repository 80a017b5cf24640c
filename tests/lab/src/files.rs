// SPDX-License-Identifier: GPL-2.0

//! The other end of the network: a file server that the guest reaches at 10.0.2.2.

use anyhow::Result;
use sha2::{Digest, Sha256};
use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread,
};

/// The contents: the same pseudo-random bytes each time (a 64-bit xorshift).
pub fn contents(len: usize) -> Vec<u8> {
    pieces(len).collect::<Vec<_>>().concat()
}

/// The contents in pieces.
fn pieces(len: usize) -> impl Iterator<Item = Vec<u8>> {
    const PIECE: usize = 1 << 16;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..len).step_by(PIECE).map(move |at| {
        let mut bytes = Vec::with_capacity(PIECE);
        while bytes.len() < PIECE {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        bytes.truncate(len - at);
        bytes
    })
}

/// SHA-256 in hexadecimal digits.
pub fn sum(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in Sha256::digest(bytes) {
        text += &format!("{byte:02x}");
    }
    text
}

/// Serves `contents(len)` for `GET /len` on a free port, which it returns, as long as we live.
pub fn serve() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            // A guest that is destroyed while it reads breaks its connection only.
            thread::spawn(move || answer(stream));
        }
    });
    Ok(port)
}

fn answer(mut stream: TcpStream) -> Option<()> {
    let mut request = [0; 512];
    let len = stream.read(&mut request).ok()?;
    let request = String::from_utf8_lossy(&request[..len]).into_owned();
    let len: usize = request
        .strip_prefix("GET /")?
        .split(' ')
        .next()?
        .parse()
        .ok()?;
    let header = format!("HTTP/1.0 200 OK\r\nContent-Length: {len}\r\n\r\n");
    stream.write_all(header.as_bytes()).ok()?;
    pieces(len).try_for_each(|piece| stream.write_all(&piece).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_sends_what_the_sum_is_of() {
        let port = serve().unwrap();
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(b"GET /100001 HTTP/1.0\r\n\r\n").unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        let body = all.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
        assert_eq!(all.len() - body, 100_001);
        assert_eq!(sum(&all[body..]), sum(&contents(100_001)));
        assert_ne!(sum(&all[body + 1..]), sum(&contents(100_001)));
    }
}
