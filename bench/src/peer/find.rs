//! Where the measured proxies are on this machine, and what they say about their version.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Id;

/// The program of a peer, or how to get it.
pub(crate) fn program(id: Id, portcullis: &Path) -> Result<PathBuf, String> {
    match id {
        Id::Portcullis if portcullis.is_file() => Ok(portcullis.to_owned()),
        Id::Portcullis => Err("cargo build --profile dist".to_owned()),
        Id::NginxTuned | Id::NginxBasic => on_path("nginx"),
        Id::NginxBearer => {
            let program = on_path("openresty").or_else(|_| on_path("nginx"))?;
            match lua_modules(&program) {
                Some(_) => Ok(program),
                None => Err(get("nginx with its Lua module, or openresty")),
            }
        }
        Id::Haproxy => on_path("haproxy"),
        Id::CaddyDistro => on_path("caddy"),
        Id::CaddyNewest => kept("caddy"),
        Id::Litellm => kept("litellm/bin/litellm"),
        Id::Direct => Ok(PathBuf::new()),
    }
}

/// What the program says about its version, in a few words.
pub(crate) fn version(id: Id, program: &Path) -> String {
    let arguments: &[&str] = match id {
        Id::Portcullis => &["--version"],
        Id::NginxTuned | Id::NginxBasic | Id::NginxBearer | Id::Haproxy => &["-v"],
        Id::CaddyDistro => &["version"],
        // built by `go install`, it knows its version only here
        Id::CaddyNewest => &["build-info"],
        // the program itself would import for seconds
        Id::Litellm => &["-c", "import importlib.metadata as m; print(m.version('litellm'))"],
        Id::Direct => return String::new(),
    };
    let program =
        if id == Id::Litellm { program.with_file_name("python") } else { program.to_owned() };
    let said = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let text = said.map(|said| [said.stdout, said.stderr].concat()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    // the first word with a figure in it: the rest is names, dates and check sums
    let version = |word: &&str| {
        word.contains('.') && word.trim_start_matches('v').starts_with(|c: char| c.is_ascii_digit())
    };
    text.split([' ', '/', '\t', '\n'])
        .find(version)
        .map_or_else(|| "?".to_owned(), |word| word.trim_start_matches('v').to_owned())
}

/// The modules to load for Lua: none for OpenResty, which has it built in.
pub(crate) fn lua_modules(program: &Path) -> Option<Vec<PathBuf>> {
    if program.ends_with("openresty") {
        return Some(Vec::new());
    }
    ["/usr/lib/nginx/modules", "/usr/lib64/nginx/modules"].iter().find_map(|folder| {
        let files = ["ndk_http_module.so", "ngx_http_lua_module.so"];
        let paths: Vec<PathBuf> = files.iter().map(|file| Path::new(folder).join(file)).collect();
        paths.iter().all(|path| path.is_file()).then_some(paths)
    })
}

fn on_path(name: &str) -> Result<PathBuf, String> {
    let path = env::var_os("PATH").unwrap_or_default();
    // servers are in sbin, which an ordinary user's PATH leaves out
    let sbin = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
    env::split_paths(&path)
        .chain(sbin)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .ok_or_else(|| get(name))
}

fn kept(name: &str) -> Result<PathBuf, String> {
    let file = cache().join("bench").join(name);
    if file.is_file() { Ok(file) } else { Err(get(name.rsplit('/').next().unwrap_or(name))) }
}

fn get(what: &str) -> String {
    format!("no {what} here; bench/get-peers installs it")
}

/// The folder that `check` and `get-peers` use too.
fn cache() -> PathBuf {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("PORTCULLIS_CACHE").unwrap_or_else(|| {
        let base = set("XDG_CACHE_HOME")
            .or_else(|| set("HOME").map(|home| home.join(".cache")))
            .unwrap_or_else(env::temp_dir);
        base.join("portcullis")
    })
}
