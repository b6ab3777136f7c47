//! Which tracking server, and what it is told of who asks.

use std::{
    env,
    ffi::OsString,
    fmt, fs,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use ureq::{
    Proxy,
    http::{HeaderValue, Uri},
    tls::{Certificate, PemItem, parse_pem},
};

/// The variables that MLflow's own client reads.
const ADDRESS: &str = "MLFLOW_TRACKING_URI";
const TOKEN: &str = "MLFLOW_TRACKING_TOKEN";
const USERNAME: &str = "MLFLOW_TRACKING_USERNAME";
const PASSWORD: &str = "MLFLOW_TRACKING_PASSWORD";
const CERTIFICATES: &str = "MLFLOW_TRACKING_SERVER_CERT_PATH";

/// Why a tracking server cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum MlflowError {
    /// None is named.
    #[error(
        "no tracking server is named: give its address, as `mlflow = \"http://127.0.0.1:5000\"` in `[logging]`, or \
         set MLFLOW_TRACKING_URI"
    )]
    NoAddress,
    /// The address is none.
    #[error("{from} {reason}")]
    Address {
        /// The key or variable that it comes from.
        from: &'static str,
        /// What is wrong, what is expected. The address itself, which may hold a
        /// password, is not repeated.
        reason: String,
    },
    /// A name without its password, or the other way around.
    #[error("{given} is set and {missing} is not: set both or neither")]
    HalfAPair {
        /// The variable that is set.
        given: &'static str,
        /// The one that goes with it.
        missing: &'static str,
    },
    /// A token that cannot be sent.
    #[error(
        "{0} holds line breaks or other characters that a header of HTTP cannot hold: set it to the token alone"
    )]
    Token(&'static str),
    /// The certificates cannot be used.
    #[error("the certificates in {path} cannot be used: {reason}. {from} is to name a PEM file")]
    Certificates {
        /// The variable that names them.
        from: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// Whether an address can be that of a tracking server.
///
/// # Errors
///
/// What it is, and what is expected; the address itself, which may hold a
/// password, is not repeated.
pub fn check_address(address: &str) -> Result<(), String> {
    const EXPECTED: &str =
        "the address of a tracking server is expected, such as http://127.0.0.1:5000";
    let scheme = address.split_once(':').map(|(scheme, _)| scheme);
    let is_scheme = |scheme: &&str| {
        scheme
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '+')
    };
    match scheme.filter(is_scheme) {
        Some("http" | "https") if address.contains("://") => {}
        Some("databricks" | "uc") => {
            return Err(format!(
                "names Databricks, whose own way of signing in is not supported: {EXPECTED}"
            ));
        }
        Some(scheme) if address.starts_with(&format!("{scheme}:/")) => {
            return Err(format!(
                "begins with `{scheme}:`, and a file store or a database has no interface to send to: {EXPECTED}. \
                 `mlflow server --backend-store-uri …` serves one"
            ));
        }
        _ => return Err(format!("is no address: {EXPECTED}")),
    }
    let uri: Uri = address
        .parse()
        .map_err(|error| format!("is no address, {error}: {EXPECTED}"))?;
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    if authority.contains('@') {
        return Err(format!(
            "holds a name or a password, which would be written to files: set {USERNAME} and {PASSWORD}, or {TOKEN}, \
             and give the address without"
        ));
    }
    if uri.host().is_none_or(str::is_empty) {
        return Err(format!("has no host: {EXPECTED}"));
    }
    if address.contains(['?', '#']) {
        return Err(format!("has a `?` or a `#`: {EXPECTED}"));
    }
    Ok(())
}

/// A tracking server, with what it is told of who asks. That is sent to it alone
/// and printed nowhere.
#[derive(Clone)]
pub struct Server {
    address: String,
    authorization: Option<HeaderValue>,
    /// What must not be repeated, whoever says it.
    secrets: Vec<String>,
    certificates: Option<Vec<Certificate<'static>>>,
    proxy: Option<Proxy>,
}

impl Server {
    /// A server that everyone may ask.
    ///
    /// # Errors
    ///
    /// [`MlflowError::Address`] unless it is `http://…` or `https://…`.
    pub fn new(address: &str) -> Result<Self, MlflowError> {
        Self::at(address, "the address")
    }

    /// The same for whoever has a token.
    ///
    /// # Errors
    ///
    /// [`MlflowError::Token`] if it cannot be sent.
    pub fn with_token(mut self, token: &str) -> Result<Self, MlflowError> {
        let token = token.trim();
        self.authorize(&format!("Bearer {token}"), TOKEN)?;
        if !token.is_empty() {
            self.secrets.push(token.to_owned());
        }
        Ok(self)
    }

    fn at(address: &str, from: &'static str) -> Result<Self, MlflowError> {
        check_address(address).map_err(|reason| MlflowError::Address { from, reason })?;
        Ok(Self {
            address: address.trim_end_matches('/').to_owned(),
            authorization: None,
            secrets: Vec::new(),
            certificates: None,
            proxy: None,
        })
    }

    /// The server at an address, or else at that of `MLFLOW_TRACKING_URI`, with
    /// what else MLflow's own client takes from the environment:
    /// `MLFLOW_TRACKING_USERNAME` with `MLFLOW_TRACKING_PASSWORD`, else
    /// `MLFLOW_TRACKING_TOKEN`; `MLFLOW_TRACKING_SERVER_CERT_PATH`, else
    /// `SSL_CERT_FILE`; `HTTPS_PROXY`, `ALL_PROXY`, `HTTP_PROXY` and `NO_PROXY`.
    ///
    /// # Errors
    ///
    /// [`MlflowError`] names the variable that cannot be used.
    pub fn from_env(address: Option<&str>) -> Result<Self, MlflowError> {
        let mut server = Self::from_variables(address, &|name| env::var_os(name))?;
        // This machine is reached without one.
        server.proxy = Proxy::try_from_env().filter(|_| !server.is_local());
        Ok(server)
    }

    fn from_variables(
        address: Option<&str>,
        variable: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Self, MlflowError> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let text = |name: &str| {
            let text = set(name)?.to_string_lossy().into_owned();
            (!text.trim().is_empty()).then_some(text)
        };
        let mut server = match (address, text(ADDRESS)) {
            (Some(address), _) => Self::at(address, "`logging.mlflow`")?,
            (None, Some(address)) => Self::at(address.trim(), ADDRESS)?,
            (None, None) => return Err(MlflowError::NoAddress),
        };
        match (text(USERNAME), text(PASSWORD)) {
            (Some(name), Some(password)) => {
                let pair = STANDARD.encode(format!("{name}:{password}"));
                server.authorize(&format!("Basic {pair}"), PASSWORD)?;
                server.secrets.extend([pair, password]);
            }
            (None, None) => {
                if let Some(token) = text(TOKEN) {
                    server = server.with_token(&token)?;
                }
            }
            (name, _) => {
                let (given, missing) = match name {
                    Some(_) => (USERNAME, PASSWORD),
                    None => (PASSWORD, USERNAME),
                };
                return Err(MlflowError::HalfAPair { given, missing });
            }
        }
        for from in [CERTIFICATES, "SSL_CERT_FILE"] {
            // Without TLS there are none to look at.
            if server.certificates.is_none()
                && server.address.starts_with("https://")
                && let Some(path) = set(from)
            {
                server.certificates = Some(certificates(from, Path::new(&path))?);
            }
        }
        Ok(server)
    }

    fn authorize(&mut self, value: &str, from: &'static str) -> Result<(), MlflowError> {
        let mut value = HeaderValue::from_str(value).map_err(|_| MlflowError::Token(from))?;
        value.set_sensitive(true);
        self.authorization = Some(value);
        Ok(())
    }

    /// Where it is, without a slash at the end.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether it is on this machine, by its name.
    fn is_local(&self) -> bool {
        let uri: Option<Uri> = self.address.parse().ok();
        uri.as_ref()
            .and_then(Uri::host)
            .is_some_and(|host| host == "localhost" || host == "[::1]" || host.starts_with("127."))
    }

    pub(super) fn authorization(&self) -> Option<&HeaderValue> {
        self.authorization.as_ref()
    }

    pub(super) fn certificates(&self) -> Option<&[Certificate<'static>]> {
        self.certificates.as_deref()
    }

    pub(super) fn proxy(&self) -> Option<Proxy> {
        self.proxy.clone()
    }

    /// A text without the secrets: a server should not repeat them, but a proxy
    /// might.
    pub(super) fn hide(&self, text: &str) -> String {
        let secrets = self.secrets.iter();
        secrets.fold(text.to_owned(), |text, secret| text.replace(secret, "…"))
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

fn certificates(from: &'static str, path: &Path) -> Result<Vec<Certificate<'static>>, MlflowError> {
    let refuse = |reason: String| MlflowError::Certificates {
        from,
        path: path.to_owned(),
        reason,
    };
    let text = fs::read(path).map_err(|error| refuse(error.to_string()))?;
    let found: Vec<_> = parse_pem(&text)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if found.is_empty() {
        return Err(refuse("it holds none".to_owned()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(address: Option<&str>, variables: &[(&str, &str)]) -> Result<Server, MlflowError> {
        let variables: Vec<_> = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), OsString::from(value)))
            .collect();
        Server::from_variables(address, &|wanted| {
            let mut variables = variables.iter();
            let found = variables.find(|(name, _)| name == wanted);
            found.map(|(_, value)| value.clone())
        })
    }

    #[test]
    fn what_is_no_tracking_server_is_refused_by_what_it_is() {
        for (address, expected) in [
            ("file:///mlruns", "begins with `file:`"),
            ("file:/mlruns", "begins with `file:`"),
            ("sqlite:///mlflow.db", "begins with `sqlite:`"),
            (
                "postgresql+psycopg2://u:hush@db/x",
                "begins with `postgresql+psycopg2:`",
            ),
            ("databricks", "is no address"),
            ("databricks://profile", "names Databricks"),
            ("./mlruns", "is no address"),
            ("127.0.0.1:5000", "is no address"),
            ("localhost:5000", "is no address"),
            ("http:127.0.0.1", "is no address"),
            ("http://", "is no address"),
            (
                "http://me:hush@mlflow.example",
                "holds a name or a password",
            ),
            ("http://mlflow.example/?x=1", "has a `?`"),
            ("", "is no address"),
        ] {
            let reason = check_address(address).unwrap_err();
            assert!(reason.contains(expected), "{address}: {reason}");
            assert!(!reason.contains("hush"), "{address}: {reason}");
        }
        for address in [
            "http://127.0.0.1:5000",
            "http://localhost:5000/",
            "https://mlflow.example/team/",
            "http://[::1]:5000",
        ] {
            check_address(address).unwrap();
        }
    }

    #[test]
    fn the_address_of_the_recipe_goes_before_that_of_the_environment() {
        let set = [(ADDRESS, "http://environment:5000/")];
        let recipe = from(Some("http://recipe:5000"), &set).unwrap();
        assert_eq!(recipe.address(), "http://recipe:5000");
        assert_eq!(
            from(None, &set).unwrap().address(),
            "http://environment:5000"
        );
        let missing = from(None, &[]).unwrap_err().to_string();
        assert!(missing.contains(ADDRESS), "{missing}");
        let local = from(None, &[(ADDRESS, "mlruns")]).unwrap_err().to_string();
        assert!(local.starts_with(ADDRESS), "{local}");
    }

    #[test]
    fn name_and_password_go_before_a_token_as_in_mlflows_client() {
        let header = |variables: &[_]| {
            let server = from(Some("http://a"), variables).unwrap();
            server
                .authorization
                .map(|value| value.to_str().unwrap().to_owned())
        };
        let (name, password, token) = ((USERNAME, "zora"), (PASSWORD, "hush"), (TOKEN, " t0k \n"));
        assert_eq!(header(&[]), None);
        assert_eq!(header(&[(TOKEN, " ")]), None);
        assert_eq!(header(&[token]).unwrap(), "Bearer t0k");
        // base64 of `zora:hush`.
        let basic = "Basic em9yYTpodXNo";
        assert_eq!(header(&[name, password, token]).unwrap(), basic);
        let half = from(Some("http://a"), &[password, token])
            .unwrap_err()
            .to_string();
        assert!(half.contains("MLFLOW_TRACKING_USERNAME is not"), "{half}");
        let broken = from(Some("http://a"), &[(TOKEN, "t0k\nX: y")])
            .unwrap_err()
            .to_string();
        assert!(
            broken.contains(TOKEN) && !broken.contains("t0k"),
            "{broken}"
        );
    }

    #[test]
    fn secrets_are_in_no_text() {
        let server = from(Some("http://a"), &[(USERNAME, "zora"), (PASSWORD, "hush")]).unwrap();
        let shown = format!("{server:?}");
        assert!(
            !shown.contains("hush") && !shown.contains("em9y"),
            "{shown}"
        );
        let said = server.hide("Basic em9yYTpodXNo means hush");
        assert_eq!(said, "Basic … means …");
    }
}
