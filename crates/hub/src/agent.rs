//! How requests are made: time limits, proxy, and whom to trust.

use std::{fs, path::Path};

use ureq::{
    Agent,
    config::Config,
    tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem},
};

use crate::{HubError, HubOptions};

/// An agent that returns every status and redirect as it comes.
pub(crate) fn agent(options: &HubOptions) -> Result<Agent, HubError> {
    let roots = match &options.certificates {
        Some(path) => RootCerts::new_with_certs(&certificates(path)?),
        None => RootCerts::WebPki,
    };
    Ok(Config::builder()
        // Redirects are followed where it is known whom the token may reach.
        .max_redirects(0)
        .http_status_as_error(false)
        .user_agent(concat!("olora/", env!("CARGO_PKG_VERSION")))
        .proxy(options.proxy.clone())
        .tls_config(TlsConfig::builder().root_certs(roots).build())
        .timeout_resolve(Some(options.timeout))
        .timeout_connect(Some(options.timeout))
        .timeout_recv_response(Some(options.timeout))
        .timeout_per_read(Some(options.timeout))
        .build()
        .new_agent())
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>, HubError> {
    let text = fs::read(path).map_err(|source| HubError::io("cannot read", path, source))?;
    let found: Vec<_> = parse_pem(&text)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if found.is_empty() {
        return Err(HubError::NoCertificates(path.to_owned()));
    }
    Ok(found)
}
