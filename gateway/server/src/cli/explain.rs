//! `fieldgate explain`

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::DEFAULT_ADMIN;
use super::check::Checked;
use super::client::{encode, get_json};
use super::trust_domain::TrustDomainArgs;
use crate::explain::{Answer, Question, explain};

/// Say what becomes of a request: which listener, rule, policy and backend, and why not the others.
#[derive(Args)]
#[command(after_help = "Nothing is sent. Without --config the running gateway is asked.

Examples:
  fieldgate explain GET http://shop.example/cart
  fieldgate explain POST https://shop.example/pay -H 'x-canary: yes' --config ./config
  fieldgate explain GET http://shop.example/admin --client 203.0.113.9
  fieldgate explain GET https://shop.example/ --principal cluster.local/ns/shop/sa/web --claim groups='[\"admin\"]'")]
pub(super) struct Explain {
    /// The method.
    method: String,
    /// The URL, with the port that clients use if it is not the usual one.
    url: String,
    /// A request header, `name: value`; may be repeated.
    #[arg(short = 'H', long = "header", value_name = "HEADER")]
    headers: Vec<String>,
    /// The client's address.
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    client: String,
    /// The identity of the client's certificate: `cluster.local/ns/shop/sa/web`.
    #[arg(long, value_name = "NAME")]
    principal: Option<String>,
    /// A claim of a verified token, `name=value`, where the value may be JSON; may be repeated. A token in a header is
    /// read, too, and not verified.
    #[arg(long = "claim", value_name = "CLAIM")]
    claims: Vec<String>,
    #[command(flatten)]
    trust_domain: TrustDomainArgs,
    /// Ask a configuration: directories, files, or `-`.
    #[arg(long, value_name = "PATH", num_args = 1.., conflicts_with = "admin")]
    config: Vec<PathBuf>,
    /// Ask the gateway with this admin address.
    #[arg(long, value_name = "ADDR", default_value = DEFAULT_ADMIN)]
    admin: SocketAddr,
    /// JSON for programs.
    #[arg(long)]
    json: bool,
}

impl Explain {
    pub(super) fn run(self) -> Result<ExitCode, String> {
        // A mistake in the question is told the same way, whoever answers.
        let question = Question::new(&self.method, &self.url, &self.headers, Some(&self.client))?
            .with_principal(self.principal.as_deref())
            .with_claims(&self.claims)?;
        let answer = if self.config.is_empty() {
            self.ask()?
        } else {
            let checked = Checked::read(&self.config, None, self.trust_domain.names(), None)?;
            if checked.errors() > 0 {
                eprintln!("note: the configuration has errors; `fieldgate check` shows them");
            }
            explain(&checked.snapshot, &question, 0)
        };
        if self.json {
            let value = serde_json::to_string_pretty(&answer).map_err(|error| error.to_string())?;
            println!("{value}");
        } else {
            print!("{answer}");
        }
        Ok(ExitCode::SUCCESS)
    }

    fn ask(&self) -> Result<Answer, String> {
        let mut path = format!(
            "/api/v1/explain?method={}&url={}&client={}",
            encode(&self.method),
            encode(&self.url),
            encode(&self.client)
        );
        for header in &self.headers {
            path.push_str(&format!("&header={}", encode(header)));
        }
        if let Some(principal) = &self.principal {
            path.push_str(&format!("&principal={}", encode(principal)));
        }
        for claim in &self.claims {
            path.push_str(&format!("&claim={}", encode(claim)));
        }
        let value = get_json(self.admin, &path)?;
        serde_json::from_value(value)
            .map_err(|error| format!("the gateway at {} is of another version: {error}", self.admin))
    }
}
