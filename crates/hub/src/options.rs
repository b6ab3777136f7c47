//! Where the hub and its cache are, and how patiently they are asked.

use std::{
    env,
    ffi::OsString,
    fmt, fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// The hub, unless `HF_ENDPOINT` names another.
const ENDPOINT: &str = "https://huggingface.co";

/// Any of these means that the network is not to be touched.
const OFFLINE: [&str; 3] = [
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_DATASETS_OFFLINE",
];

/// A secret that gives access to gated and private repositories. It is sent to
/// the endpoint only, and printed nowhere.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// The token in a text, without the white space around it; none if nothing is left.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

/// Where the hub and its cache are, and how patiently they are asked.
#[derive(Clone, Debug)]
pub struct HubOptions {
    /// The address of the hub, `https://huggingface.co` or a mirror.
    pub endpoint: String,
    /// The directory that holds `models--owner--name` and `datasets--owner--name`.
    pub cache: PathBuf,
    /// What gives access to gated and private repositories.
    pub token: Option<Token>,
    /// Use the cache only; touch no network.
    pub offline: bool,
    /// How often in a row a request may fail before the download does.
    /// A download that gets further starts to count anew.
    pub attempts: u32,
    /// How long to wait before the second attempt; doubled before each further one.
    pub retry_wait: Duration,
    /// How long the hub may be silent before a request counts as failed.
    pub timeout: Duration,
    /// A PEM file of the certificate authorities to trust; without one, Mozilla's.
    pub certificates: Option<PathBuf>,
    /// The directory where uploads in parts are remembered, to go on with; with
    /// none they begin anew.
    pub uploads: Option<PathBuf>,
    pub(crate) proxy: Option<ureq::Proxy>,
}

impl HubOptions {
    /// Options for a hub and a cache, with no token and no proxy.
    pub fn new(endpoint: &str, cache: &Path) -> Self {
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache: cache.to_owned(),
            token: None,
            offline: false,
            attempts: 5,
            retry_wait: Duration::from_secs(1),
            timeout: Duration::from_secs(30),
            certificates: None,
            uploads: None,
            proxy: None,
        }
    }

    /// Options from the variables that Python's `huggingface_hub` reads, with
    /// the same precedence and defaults: `HF_ENDPOINT`; `HF_HUB_CACHE`, then
    /// `HUGGINGFACE_HUB_CACHE`, then `hub` in `HF_HOME` (by default
    /// `huggingface` in `XDG_CACHE_HOME` or `~/.cache`); `HF_TOKEN`, then
    /// `HUGGING_FACE_HUB_TOKEN`, then the file `HF_TOKEN_PATH` (by default
    /// `token` in `HF_HOME`), unless `HF_HUB_DISABLE_IMPLICIT_TOKEN` is set;
    /// `HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE` or `HF_DATASETS_OFFLINE`. Also `SSL_CERT_FILE`,
    /// `HTTPS_PROXY`, `ALL_PROXY`, `HTTP_PROXY` and `NO_PROXY`. Uploads are remembered in `uploads` of
    /// `OLORA_CACHE`, else of `olora` in `XDG_CACHE_HOME` or `~/.cache`, unless `OLORA_CACHE` is `off`.
    ///
    /// The token file is read here. Without any home directory, the cache is
    /// in the system's directory for temporary files.
    pub fn from_env() -> Self {
        let mut options =
            Self::from_variables(&|name| env::var_os(name), env::home_dir().as_deref());
        options.proxy = ureq::Proxy::try_from_env();
        options
    }

    fn from_variables(variable: &dyn Fn(&str) -> Option<OsString>, user: Option<&Path>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let text = |name: &str| set(name).and_then(|value| value.into_string().ok());
        let path = |name: &str| set(name).map(|value| expand(PathBuf::from(value), user));
        let truthy = |name: &str| {
            text(name).is_some_and(|value| {
                ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str())
            })
        };
        let home = path("HF_HOME").unwrap_or_else(|| {
            path("XDG_CACHE_HOME")
                .or_else(|| user.map(|user| user.join(".cache")))
                .unwrap_or_else(env::temp_dir)
                .join("huggingface")
        });
        let cache = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .unwrap_or_else(|| home.join("hub"));
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        let mut options = Self::new(&endpoint, &cache);
        options.certificates = path("SSL_CERT_FILE");
        options.offline = OFFLINE.into_iter().any(truthy);
        options.uploads = match text("OLORA_CACHE").as_deref() {
            Some("off") => None,
            Some(own) => Some(expand(PathBuf::from(own), user)),
            None => path("XDG_CACHE_HOME")
                .or_else(|| user.map(|user| user.join(".cache")))
                .map(|cache| cache.join("olora")),
        }
        .map(|cache| cache.join("uploads"));
        if !truthy("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            let from = |name: &str| text(name).as_deref().and_then(Token::new);
            options.token = from("HF_TOKEN")
                .or_else(|| from("HUGGING_FACE_HUB_TOKEN"))
                .or_else(|| {
                    let file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
                    Token::new(&fs::read_to_string(file).ok()?)
                });
        }
        options
    }
}

/// Puts the home directory in the place of a leading `~`, as Python does.
fn expand(path: PathBuf, user: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~"), user) {
        (Ok(rest), Some(user)) => user.join(rest),
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(variables: &[(&str, &str)]) -> HubOptions {
        let variables: Vec<_> = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), OsString::from(value)))
            .collect();
        HubOptions::from_variables(
            &|wanted| {
                variables
                    .iter()
                    .find(|(name, _)| name == wanted)
                    .map(|(_, value)| value.clone())
            },
            Some(Path::new("/home/me")),
        )
    }

    #[test]
    fn the_cache_is_where_python_looks_for_it() {
        let cache = |variables: &[_]| options(variables).cache;
        assert_eq!(cache(&[]), Path::new("/home/me/.cache/huggingface/hub"));
        assert_eq!(
            cache(&[("XDG_CACHE_HOME", "/x")]),
            Path::new("/x/huggingface/hub")
        );
        assert_eq!(
            cache(&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "~/h")]),
            Path::new("/home/me/h/hub")
        );
        assert_eq!(
            cache(&[("HF_HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/old")]),
            Path::new("/old")
        );
        assert_eq!(
            cache(&[("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/c")]),
            Path::new("/c")
        );
        assert_eq!(
            cache(&[("HF_HUB_CACHE", "")]),
            Path::new("/home/me/.cache/huggingface/hub")
        );
    }

    #[test]
    fn the_token_comes_from_the_variables_then_from_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let home = directory.path().to_str().unwrap();
        fs::write(directory.path().join("token"), "hf_file\n").unwrap();
        let token = |variables: &[_]| {
            options(variables)
                .token
                .map(|token| token.reveal().to_owned())
        };
        assert_eq!(token(&[("HF_HOME", home)]).unwrap(), "hf_file");
        let old = ("HUGGING_FACE_HUB_TOKEN", "hf_old");
        assert_eq!(token(&[("HF_HOME", home), old]).unwrap(), "hf_old");
        assert_eq!(token(&[("HF_TOKEN", " hf_new\n"), old]).unwrap(), "hf_new");
        let disabled = ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1");
        assert_eq!(token(&[("HF_TOKEN", "hf_new"), disabled]), None);
        assert_eq!(token(&[("HF_TOKEN_PATH", "/does/not/exist")]), None);
    }

    #[test]
    fn endpoint_and_offline_mode_follow_their_variables() {
        assert_eq!(options(&[]).endpoint, "https://huggingface.co");
        let mirror = options(&[("HF_ENDPOINT", "https://mirror.example/")]);
        assert_eq!(mirror.endpoint, "https://mirror.example");
        for (value, expected) in [("1", true), ("true", true), ("0", false), ("", false)] {
            for name in OFFLINE {
                assert_eq!(options(&[(name, value)]).offline, expected, "{name}");
            }
        }
    }

    #[test]
    fn the_token_is_not_in_the_debug_output() {
        let printed = format!("{:?}", options(&[("HF_TOKEN", "hf_secret")]));
        assert!(!printed.contains("hf_secret"), "{printed}");
        assert!(printed.contains("hidden"), "{printed}");
    }
}
