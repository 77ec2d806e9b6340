//! A key in the path reaches neither the log nor the backend, however it was written.

use crate::house::{Backend, House, KEY};

#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_the_path_is_never_logged_or_sent_on() {
    let backend = Backend::ok().await;
    let house = House::with(&backend, |config, _| config.path_keys = true).await;
    let spellings = [
        (format!("/k/{KEY}/api/tags"), 200),
        (format!("/k/{KEY}"), 200),
        (format!("/k/{KEY}/k/{KEY}/api/tags"), 400),
        (format!("/k/{KEY}/k/{KEY}"), 400),
        (format!("//k/{KEY}/api/tags"), 400),
        (format!("/k//{KEY}/api/tags"), 400),
        (format!("/K/{KEY}/api/tags"), 401),
        // The key behind the base URL's path.
        (format!("/v1/k/{KEY}/chat/completions"), 400),
        (format!("/ollama/k/{KEY}/api/tags"), 400),
        (format!("/api/tags/K/{KEY}"), 400),
        (format!("/./k/{KEY}/api/tags"), 400),
        (format!("/k/{KEY}/v1/k/{KEY}/models"), 400),
    ];
    for (number, (path, _)) in spellings.iter().enumerate() {
        house.ask(format!("GET {path} HTTP/1.1\r\nHost: gate\r\n\r\n")).await;
        house.log.wait_for(number + 1).await;
    }
    let lines = house.log.all();
    for (line, (path, status)) in lines.iter().zip(&spellings) {
        assert!(!line.to_string().contains(KEY), "{path}: {line}");
        assert_eq!(line["status"], *status, "{path}: {line}");
    }
    for seen in backend.seen() {
        assert!(!seen.head.contains(KEY), "{}", seen.head);
    }
}
