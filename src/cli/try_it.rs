//! `portcullis try`: a working gate in a minute, and the lines to ask it with.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde_json::Value;
use tokio::runtime::Runtime;

use super::{ask, serve};
use crate::auth::stored_hash::StoredHash;
use crate::config::{BackendUrl, Config, ListenAddr};
use crate::server::{Listener, Server};
use crate::stand_in::{self, StandIn};

/// Fast enough not to bore, slow enough to be seen.
const PACE: Duration = Duration::from_millis(80);

#[derive(Debug, Args)]
pub(super) struct Options {
    /// The model server to stand in front of; without one a built-in stand-in answers
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:11434")]
    upstream: String,
    /// Where to listen; a free port is taken if this one is in use
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8880")]
    listen: String,
}

pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    let upstream: BackendUrl = options.upstream.parse().context("--upstream")?;
    let mut config = Config::builtin();
    config.path_keys = true;
    config.admin = None;
    config.listen =
        vec![ListenAddr::Tcp(options.listen.parse().context("--listen wants ADDRESS:PORT")?)];
    let folder = Folder::make()?;
    let login = Login::make(&folder, &mut config)?;
    let events = serve::start_events(config.log_format)?;
    let served = Runtime::new().context("could not start the runtime")?.block_on(async {
        let (backend, _stand_in) = find_backend(upstream, &mut config).await?;
        let listeners = listen(&config)?;
        let address = listeners.first().context("nothing to listen on")?.address();
        super::say(&greeting(&backend, &format!("http://{address}"), &login));
        serve::serve(config, listeners, None).await
    });
    events.flush(Duration::from_secs(1));
    served
}

/// What stands behind the gate, and a model that it has.
struct Backend {
    says: String,
    model: String,
}

async fn find_backend(
    upstream: BackendUrl,
    config: &mut Config,
) -> anyhow::Result<(Backend, Option<StandIn>)> {
    let authority = upstream.authority();
    if !matches!(upstream, BackendUrl::Http { .. }) {
        let says = format!("the model server at {upstream}");
        config.set_upstream(upstream);
        return Ok((Backend { says, model: "MODEL".to_owned() }, None));
    }
    let asked = authority.clone();
    let tags = tokio::task::spawn_blocking(move || ask::get(&asked, "/api/tags")).await?;
    config.set_upstream(upstream);
    if let Ok((200, tags)) = tags {
        let model = first_model(&tags).unwrap_or_else(|| "MODEL".to_owned());
        return Ok((Backend { says: format!("the model server at {authority}"), model }, None));
    }
    let stand_in = StandIn::start(PACE).await.context("could not start the stand-in")?;
    config.set_upstream(format!("http://{}", stand_in.address()).parse()?);
    let says = format!("the built-in stand-in, because no model server answers at {authority}");
    Ok((Backend { says, model: stand_in::MODEL.to_owned() }, Some(stand_in)))
}

fn first_model(tags: &str) -> Option<String> {
    // The body may still be in chunks; the list is between the outermost braces.
    let json = tags.get(tags.find('{')?..=tags.rfind('}')?)?;
    let tags: Value = serde_json::from_str(json).ok()?;
    Some(tags.pointer("/models/0/name")?.as_str()?.to_owned())
}

fn listen(config: &Config) -> anyhow::Result<Vec<Listener>> {
    if let Ok(listeners) = Server::bind(&config.listen) {
        return Ok(listeners);
    }
    let mut anywhere = config.clone();
    for address in &mut anywhere.listen {
        if let ListenAddr::Tcp(address) = address {
            address.set_port(0);
        }
    }
    serve::listen(&anywhere)
}

/// A temporary user and a temporary key.
struct Login {
    password: String,
    key: String,
}

impl Login {
    fn make(folder: &Folder, config: &mut Config) -> anyhow::Result<Self> {
        let login = Self { password: random_word()?, key: format!("try-{}", random_word()?) };
        let hash = StoredHash::new_bcrypt(login.password.as_bytes(), 8)?;
        let (users, keys) = (folder.0.join("htpasswd"), folder.0.join("api_keys.txt"));
        fs::write(&users, format!("anna:{hash}\n"))?;
        fs::write(&keys, format!("{} # try\n", login.key))?;
        (config.htpasswd, config.api_keys) = (Some(users), Some(keys));
        Ok(login)
    }
}

fn random_word() -> anyhow::Result<String> {
    let mut random = [0; 10];
    getrandom::fill(&mut random).context("the system gives no random numbers")?;
    Ok(random.iter().map(|byte| char::from(b'a' + byte % 26)).collect())
}

/// A private folder that goes when the gate does.
struct Folder(PathBuf);

impl Folder {
    fn make() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("portcullis-try-{}", random_word()?));
        let mut builder = fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&path).with_context(|| format!("could not make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left in the temporary folder is a user that nobody serves any more.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn greeting(backend: &Backend, base: &str, login: &Login) -> String {
    let Login { password, key } = login;
    let Backend { says, model } = backend;
    format!(
        r#"Portcullis listens at {base}
in front of {says}.

A user `anna` and a key were made for this run. Copy a line into another terminal:

  # a key
  curl -N {base}/api/generate -H "Authorization: Bearer {key}" \
       -d '{{"model":"{model}","prompt":"Who goes there?"}}'

  # a user name and a password
  curl -N -u anna:{password} {base}/api/generate \
       -d '{{"model":"{model}","prompt":"Who goes there?"}}'

  # without a login: refused
  curl {base}/api/tags

  # Ollama's Python client
  OLLAMA_HOST={base} OLLAMA_API_KEY={key} python3 -c \
       'import ollama; print(ollama.generate("{model}", "Who goes there?").response)'

  # OpenAI's Python client
  OPENAI_BASE_URL={base}/v1 OPENAI_API_KEY={key} python3 -c \
       'import openai; print(openai.OpenAI().chat.completions.create(model="{model}",
        messages=[{{"role": "user", "content": "Who goes there?"}}]).choices[0].message.content)'

  # the stock ollama program
  OLLAMA_HOST={base}/k/{key} ollama run {model} "Who goes there?"

Ctrl-C ends it. Each request as it passes:
"#
    )
}
