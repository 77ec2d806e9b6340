//! Bodies as the gate understands them: what is refused, and what reaches the backend of the rest.

use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use crate::house::{Answer, Backend, House, KEY, post};

/// A request with these header lines and this body.
fn request(path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nHost: gate\r\nAuthorization: Bearer {KEY}\r\n{headers}\
         Content-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
}

fn told(answer: &Answer) -> (u16, String) {
    (answer.status, answer.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_reaches_the_backend_byte_for_byte() {
    let backend = Backend::ok().await;
    let house = House::new(&backend).await;
    let long = format!(
        "{{\"model\":\"m\",\"messages\":[{{\"images\":[\"{}\"]}}]}}",
        "A".repeat(3_000_000)
    );
    for (path, body) in [
        (
            "/api/chat",
            " {\"model\" :\t\"m\\u0061\", \"x\":1e400,\"options\":{ \"num_ctx\":1.0 } }\r\n",
        ),
        ("/api/copy", "{\"source\":\"a\",\"destination\":\"b\"}"),
        ("/v1/responses", "{\"model\":\"m\",\"input\":\"\\ud800\"}"),
        ("/api/chat", &long),
        ("/api/later", ""),
        // Nobody looks into these.
        ("/api/later", "no JSON"),
    ] {
        assert_eq!(house.ask(post(path, body)).await.status, 200, "{path}");
        let seen = backend.seen().pop().unwrap();
        assert!(seen.body == body.as_bytes(), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_be_another_model_or_another_option_reaches_nobody() {
    let backend = Backend::ok().await;
    let house = House::new(&backend).await;
    let long = format!("{{\"a\":\"{}\",\"model\":\"m\",\"MODEL\":\"n\"}}", "x".repeat(2_000_000));
    for (path, body) in [
        ("/api/chat", "{\"model\":\"small\",\"Model\":\"big\"}"),
        ("/api/chat", "{\"model\":\"small\",\"model\":\"big\"}"),
        ("/api/generate", "{\"model\":\"small\",\"\\u006dodel\":\"big\"}"),
        ("/api/chat", "{\"MODEL\":\"big\"}"),
        ("/api/chat", "{\"\u{17f}tream\":false}"),
        ("/api/embed", "{\"\u{212a}eep_alive\":-1}"),
        ("/api/chat", "{\"options\":{},\"Options\":{\"num_ctx\":1}}"),
        ("/api/chat", "{\"options\":{\"num_ctx\":1,\"Num_ctx\":2}}"),
        ("/api/pull", "{\"name\":\"a\",\"model\":\"b\"}"),
        ("/api/copy", "{\"source\":\"a\",\"Source\":\"b\",\"destination\":\"c\"}"),
        (
            "/v1/chat/completions",
            "{\"model\":\"a\",\"stream_options\":{\"include_usage\":true,\"Include_usage\":false}}",
        ),
        ("/v1/messages", "{\"model\":\"a\",\"Max_Tokens\":1}"),
        ("/api/chat", &long),
    ] {
        let answer = house.ask(post(path, body)).await;
        assert_eq!(told(&answer), (400, "ambiguous_body".to_owned()), "{path} {:.80}", body);
    }
    let deep = format!("{{\"a\":{}", "[".repeat(200_000));
    for body in [
        "{\"model\":[\"a\"]}",
        "{\"model\":1}",
        "{\"model\":{}}",
        "{\"model\":true}",
        &deep,
        "{\"model\":\"a\"",
        "{\"model\":\"a\"}{\"model\":\"b\"}",
        "{\"model\":\"a\"} x",
        "null",
        " ",
        "{\"options\":{\"num_ctx\":1e400}}",
        "{\"model\":\"a\nb\"}",
        "\u{feff}{}",
        "{\"model\":\"\\x\"}",
    ] {
        let answer = house.ask(post("/api/chat", body)).await;
        assert_eq!(told(&answer), (400, "bad_body".to_owned()), "{:.80}", body);
    }
    let answer = house.ask(request("/api/chat", "", b"{\"model\":\"\xff\"}")).await;
    assert_eq!(told(&answer), (400, "bad_body".to_owned()));
    assert!(backend.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_packed_body_is_sent_on_unpacked_and_only_where_ollama_unpacks() {
    let backend = Backend::ok().await;
    let house = House::with(&backend, |config, _| config.max_body = 1_000_000).await;
    let plain = b"{\"model\":\"m\", \"input\":\"hello\"}";
    let packed = compress_to_vec(&plain[..], CompressionLevel::Fastest);
    for encoding in ["zstd", "ZSTD", " zstd "] {
        let headers = format!("Content-Encoding:{encoding}\r\nContent-Type: application/json\r\n");
        assert_eq!(house.ask(request("/v1/responses", &headers, &packed)).await.status, 200);
        let seen = backend.seen().pop().unwrap();
        assert_eq!(seen.body, plain);
        assert_eq!(seen.header("content-encoding"), None);
        assert_eq!(seen.header("content-length").unwrap(), plain.len().to_string());
        assert_eq!(seen.header("content-type").unwrap(), "application/json");
    }
    let sent = backend.seen().len();
    let twice =
        compress_to_vec(&b"{\"model\":\"a\",\"Model\":\"b\"}"[..], CompressionLevel::Fastest);
    // 40 KB that would be 1.3 GB.
    let mut bomb = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 10 << 3];
    for _ in 0..10_000 {
        bomb.extend_from_slice(&[2, 0, 16, b' ']);
    }
    for (path, encoding, body, status, code) in [
        ("/v1/responses", "zstd", &twice, 400, "ambiguous_body"),
        ("/v1/responses", "zstd", &plain.to_vec(), 400, "bad_body"),
        ("/v1/responses", "zstd", &packed[..packed.len() - 3].to_vec(), 400, "bad_body"),
        ("/v1/responses", "zstd", &bomb, 413, "body_too_large"),
        ("/v1/responses", "gzip", &packed, 415, "unsupported_encoding"),
        ("/v1/responses", "zstd, zstd", &packed, 415, "unsupported_encoding"),
        ("/v1/responses", "br", &packed, 415, "unsupported_encoding"),
        ("/api/chat", "zstd", &packed, 415, "unsupported_encoding"),
        ("/v1/audio/transcriptions", "zstd", &packed, 415, "unsupported_encoding"),
        ("/v1/responses", "", &packed, 400, "bad_body"),
        ("/v1/responses", "identity", &packed, 400, "bad_body"),
    ] {
        let headers = format!("Content-Encoding: {encoding}\r\n");
        let answer = house.ask(request(path, &headers, body)).await;
        assert_eq!(told(&answer), (status, code.to_owned()), "{path} {encoding}");
    }
    assert_eq!(backend.seen().len(), sent);
    // The memory that unpacking took came back.
    let small = House::with(&backend, |config, _| config.max_body_memory = 300 * 1024).await;
    for _ in 0..5 {
        let headers = "Content-Encoding: zstd\r\n";
        assert_eq!(small.ask(request("/v1/responses", headers, &packed)).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transcription_is_sent_on_unchanged_and_names_one_model() {
    let backend = Backend::ok().await;
    let house = House::new(&backend).await;
    let part = |disposition: &str, value: &str| {
        format!("--X\r\nContent-Disposition: form-data; {disposition}\r\n\r\n{value}\r\n")
    };
    let file = part(
        "name=\"file\"; filename=\"a.wav\"\r\nContent-Type: audio/wav",
        &"\0\r\n".repeat(100_000),
    );
    let model = part("name=\"model\"", "whisper");
    let path = "/v1/audio/transcriptions";
    let form = "Content-Type: multipart/form-data; boundary=X\r\n";
    for body in [format!("{file}{model}--X--\r\n"), format!("{model}{file}--X--\r\n")] {
        assert_eq!(house.ask(request(path, form, body.as_bytes())).await.status, 200);
        let seen = backend.seen().pop().unwrap();
        assert!(seen.body == body.as_bytes());
        assert_eq!(seen.header("content-type").unwrap(), "multipart/form-data; boundary=X");
    }
    let sent = backend.seen().len();
    let whole = format!("{file}{model}--X--\r\n");
    let twice = format!("{model}{file}{model}--X--\r\n");
    let other = format!("{model}{}--X--\r\n", part("name=\"Model\"", "big"));
    for (target, headers, body, code) in [
        (path, form, &twice, "ambiguous_body"),
        (path, form, &other, "ambiguous_body"),
        ("/v1/audio/transcriptions?model=big", form, &whole, "ambiguous_body"),
        ("/v1/audio/transcriptions?%6dodel=big", form, &whole, "ambiguous_body"),
        (path, "Content-Type: application/json\r\n", &whole, "bad_body"),
        (path, "", &whole, "bad_body"),
        (path, form, &whole.replace("--X--", "--X-"), "bad_body"),
    ] {
        let answer = house.ask(request(target, headers, body.as_bytes())).await;
        assert_eq!(told(&answer), (400, code.to_owned()), "{target} {headers}");
    }
    assert_eq!(backend.seen().len(), sent);
}
