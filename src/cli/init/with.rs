//! What can run the gate: the files of `deploy/`, as they are written, and what to do with them.

use std::path::Path;

use clap::ValueEnum;

/// The line that makes the image which the files name.
const BUILD: &str = concat!(
    "docker build -t portcullis:",
    env!("CARGO_PKG_VERSION"),
    " -f deploy/Dockerfile .   # in the folder of Portcullis' sources"
);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum With {
    /// Docker: Ollama, and the gate with the configuration of this folder
    Compose,
    /// Docker: the nginx guide's set-up with users in nginx/.htpasswd
    ComposeBasic,
    /// Docker: the nginx guide's set-up with keys in nginx/api_keys.txt
    ComposeBearer,
    /// HTTPS over one of those
    ComposeTls,
    /// An NVIDIA GPU over one of those
    ComposeGpu,
    /// An AMD GPU over one of those
    ComposeGpuAmd,
    /// A service of systemd, and its socket
    Systemd,
    /// A deployment on Kubernetes
    Kubernetes,
}

impl With {
    /// Names and texts.
    pub(super) fn files(self) -> Vec<(&'static str, String)> {
        macro_rules! deploy {
            ($name:literal) => {
                ($name, without_build(include_str!(concat!("../../../deploy/", $name))))
            };
        }
        let file = match self {
            Self::Compose => deploy!("docker-compose.yml"),
            Self::ComposeBasic => deploy!("docker-compose.basic.yml"),
            Self::ComposeBearer => deploy!("docker-compose.bearer.yml"),
            Self::ComposeTls => deploy!("docker-compose.tls.yml"),
            Self::ComposeGpu => deploy!("docker-compose.gpu.yml"),
            Self::ComposeGpuAmd => deploy!("docker-compose.gpu-amd.yml"),
            Self::Systemd => {
                return vec![deploy!("portcullis.service"), deploy!("portcullis.socket")];
            }
            Self::Kubernetes => deploy!("kubernetes.yaml"),
        };
        vec![file]
    }

    /// A compose file that stands by itself.
    pub(super) fn is_compose_base(self) -> bool {
        match self {
            Self::Compose | Self::ComposeBasic | Self::ComposeBearer => true,
            Self::ComposeTls | Self::ComposeGpu | Self::ComposeGpuAmd => false,
            Self::Systemd | Self::Kubernetes => false,
        }
    }

    fn is_compose(self) -> bool {
        match self {
            Self::Compose | Self::ComposeBasic | Self::ComposeBearer => true,
            Self::ComposeTls | Self::ComposeGpu | Self::ComposeGpuAmd => true,
            Self::Systemd | Self::Kubernetes => false,
        }
    }

    /// The guide's set-ups are configured in their compose file, the deployment in its manifest.
    pub(super) fn needs_configuration(with: &[Self]) -> bool {
        with.is_empty() || with.contains(&Self::Compose) || with.contains(&Self::Systemd)
    }

    /// The guide's set-ups have their credentials.
    pub(super) fn needs_keys(with: &[Self]) -> bool {
        Self::needs_configuration(with) || with.contains(&Self::Kubernetes)
    }
}

/// The sources are not where the file will be, so it names the image alone.
fn without_build(text: &str) -> String {
    let mut kept = String::new();
    let mut inside = false;
    for line in text.split_inclusive('\n') {
        inside = line == "    build:\n" || inside && line.starts_with("      ");
        if !inside {
            kept.push_str(line);
        }
    }
    kept
}

/// What to do with what was written, a line each.
pub(super) fn next(folder: &Path, with: &[With]) -> Vec<String> {
    let file = |name: &str| folder.join(name).display().to_string();
    let mut lines = Vec::new();
    if With::needs_keys(with) {
        lines.push(format!("add a key to {}", file("api_keys.txt")));
    }
    if With::needs_configuration(with) {
        lines.push(format!("portcullis check --config {}", file("portcullis.toml")));
    }
    if with.is_empty() {
        lines.push(format!("portcullis serve --config {}", file("portcullis.toml")));
    }
    if with.iter().any(|with| with.is_compose() || *with == With::Kubernetes) {
        lines.push(BUILD.to_owned());
    }
    if with.iter().any(|with| with.is_compose()) {
        lines.push(match folder == Path::new(".") {
            true => compose_up(with),
            false => format!("cd {} && {}", folder.display(), compose_up(with)),
        });
    }
    if with.contains(&With::Systemd) {
        lines.extend([
            "install portcullis /usr/local/bin/".to_owned(),
            "useradd --system --no-create-home --shell /usr/sbin/nologin portcullis".to_owned(),
            format!(
                "install -D -o portcullis -m 600 -t /etc/portcullis {} {}",
                file("portcullis.toml"),
                file("api_keys.txt")
            ),
            format!(
                "install -m 644 -t /etc/systemd/system {} {}",
                file("portcullis.service"),
                file("portcullis.socket")
            ),
            "systemctl daemon-reload".to_owned(),
            "systemctl enable --now portcullis.socket portcullis.service".to_owned(),
        ]);
    }
    if with.contains(&With::Kubernetes) {
        lines.push("push the image, and name it in kubernetes.yaml".to_owned());
        lines.push(format!(
            "kubectl create secret generic portcullis --from-file={}",
            file("api_keys.txt")
        ));
        lines.push(format!("kubectl apply -f {}", file("kubernetes.yaml")));
    }
    lines
}

/// An overlay alone goes over whatever compose file is there already.
fn compose_up(with: &[With]) -> String {
    let mut chosen: Vec<_> = with.iter().filter(|with| with.is_compose()).collect();
    chosen.sort_by_key(|with| !with.is_compose_base());
    if chosen == [&With::Compose] {
        return "docker compose up -d".to_owned();
    }
    let mut line = "docker compose".to_owned();
    if !chosen.iter().any(|with| with.is_compose_base()) {
        line.push_str(" -f docker-compose.yml");
    }
    for (name, _) in chosen.iter().flat_map(|with| with.files()) {
        line.push_str(&format!(" -f {name}"));
    }
    line + " up -d"
}
