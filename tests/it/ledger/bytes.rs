//! Recorded answers through the whole gate: each is counted, and none is changed.

use std::sync::Mutex;

use super::*;
use crate::meter::{GUESS, Recorded, recorded};

fn path(operation: &str) -> String {
    match operation {
        "generate" | "chat" | "embed" | "embeddings" => format!("/api/{operation}"),
        "chat_completions" => "/v1/chat/completions".to_owned(),
        "v1_embeddings" => "/v1/embeddings".to_owned(),
        _ => format!("/v1/{operation}"),
    }
}

/// The answer in pieces of so many bytes.
fn steps(recorded: &Recorded, size: usize) -> Vec<Step> {
    let Recorded { answer, content_type, .. } = recorded;
    let pieces = answer.as_bytes().chunks(size);
    if content_type.starts_with("application/json") {
        let length = answer.len();
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n"
        );
        return std::iter::once(send(head)).chain(pieces.map(send)).collect();
    }
    let chunk =
        |piece: &[u8]| send([format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat());
    let head = send(stream_head(content_type));
    std::iter::once(head).chain(pieces.map(chunk)).chain([send("0\r\n\r\n")]).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn recorded_answers_pass_byte_for_byte_and_leave_what_their_server_counted() {
    let script = Arc::new(Mutex::new(Vec::new()));
    let says = Arc::clone(&script);
    let backend = Backend::scripted(move |_| says.lock().unwrap().clone()).await;
    let house = house(&backend).await;
    let mut caller = house.connect().await;
    let mut count = 0;
    for recorded in recorded() {
        let Recorded { name, answer, operation, content_type, tokens, estimated } = recorded;
        let is_chat = operation == "chat_completions" && content_type == "text/event-stream";
        for size in [1, 997, usize::MAX] {
            *script.lock().unwrap() = steps(&recorded, size);
            // Whoever asks for the usage gets all that came; who does not, all but that.
            for asks in [true, false].into_iter().filter(|asks| *asks || is_chat) {
                let wish = if asks { r#","stream_options":{"include_usage":true}"# } else { "" };
                let streams = !content_type.starts_with("application/json");
                let body = format!(r#"{{"model":"tiny","stream":{streams}{wish}}}"#);
                caller.send(post(&path(operation), &body)).await;
                let came = caller.answer().await;
                let is_wanted = |event: &&str| asks || !event.contains("\"choices\":[]");
                let expected: String = answer.split_inclusive("\n\n").filter(is_wanted).collect();
                let case = format!("{name} by {size}, asked for usage: {asks}");
                assert!(came.whole && came.status == 200, "{case}: {}", came.head);
                assert_eq!(came.text(), expected, "{case}");
                count += 1;
                let row = rows_in_time(&house, count).await.pop().unwrap();
                assert_eq!(
                    (row.usage.completion, row.usage.estimated),
                    (tokens.1, estimated),
                    "{case}"
                );
                assert!(tokens.0 == GUESS || row.usage.prompt == tokens.0, "{case}");
                // What comes behind the answer's own end is not in a row that is written by then.
                let behind = if size == usize::MAX { 0 } else { 2 };
                assert!(row.bytes_out + behind >= expected.len() as u64, "{case}");
            }
        }
    }
}
