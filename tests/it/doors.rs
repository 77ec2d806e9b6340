//! Where callers come in: several addresses, and Unix sockets.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::house::{Backend, Caller, House, get};

async fn ask(path: &std::path::Path) -> String {
    let mut caller = UnixStream::connect(path).await.unwrap();
    let request = get("/api/tags").replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
    caller.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    caller.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_serves_beside_a_port_and_is_gone_with_the_gate() {
    let backend = Backend::ok().await;
    let house = House::with(&backend, |config, folder| {
        let socket = format!("unix:{}/gate", folder.path().display());
        config.listen.push(socket.parse().unwrap());
        config.listen.push("[::1]:0".parse().unwrap());
    })
    .await;
    assert_eq!(house.get("/api/tags").await.status, 200);
    let path = house.file("gate");
    assert!(ask(&path).await.starts_with("HTTP/1.1 200 "));
    let mut sixth = Caller::connect(house.addresses[1]).await;
    sixth.send(get("/api/tags")).await;
    assert_eq!(sixth.answer().await.status, 200);
    drop(sixth);
    // Whoever asks on the socket is a program of this machine.
    let lines = house.log.wait_for(3).await;
    for (line, client) in lines.iter().zip(["127.0.0.1", "127.0.0.1", "::1"]) {
        assert_eq!(line["client"], client);
    }
    for (seen, client) in backend.seen().iter().zip(["127.0.0.1", "127.0.0.1", "::1"]) {
        assert_eq!(seen.header("x-forwarded-for").as_deref(), Some(client));
    }
    let folder = std::fs::metadata(&path).is_ok();
    let lines = house.lines().await;
    assert!(folder && !path.exists() && lines.len() == 3, "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_on_a_unix_socket_is_trusted_as_this_machine() {
    let backend = Backend::ok().await;
    let house = House::with(&backend, |config, folder| {
        let socket = format!("unix:{}/gate", folder.path().display());
        config.listen.push(socket.parse().unwrap());
        config.trusted_proxies = vec!["127.0.0.1/32".parse().unwrap()];
    })
    .await;
    let mut caller = UnixStream::connect(house.file("gate")).await.unwrap();
    let named = "\r\nX-Forwarded-For: 192.0.2.7\r\n\r\n";
    caller.write_all(get("/api/tags").replace("\r\n\r\n", named).as_bytes()).await.unwrap();
    assert_eq!(house.log.wait_for(1).await[0]["client"], "192.0.2.7");
}
