//! People log in at a real OpenID provider (`oidc-provider` for Node.js) by a client that keeps cookies: login, refresh,
//! logout, a state that is not theirs, a provider that is away.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use fieldgate_loadtests::rig::{Process, config, ports, wait};

use crate::context::{Context, Figures, Outcome, Stage, ensure};
use crate::edge::{Edge, HOST};

/// Where deploy/setup.sh puts it, unless `FIELDGATE_OIDC_PROVIDER` says otherwise.
const PROVIDER: &str = ".node-parties/node_modules/oidc-provider/lib/index.js";
const PROGRAM: &str = include_str!("oidc/provider.mjs");
const PATIENCE: Duration = Duration::from_secs(30);

pub fn run(context: &Context) -> Outcome {
    let library = std::env::var("FIELDGATE_OIDC_PROVIDER").map_or_else(|_| PROVIDER.into(), PathBuf::from);
    if !library.exists() {
        let why = format!("{} is not there; deploy/setup.sh installs it", library.display());
        return Ok(Figures::skipped(why));
    }
    let library = std::fs::canonicalize(library).map_err(|error| error.to_string())?;
    let stage = context.stage()?;
    let edge = Edge::new(&stage)?;
    let _pools = stage.pools(&["shop"])?;
    stage.config.write("route", &config::route("shop", &[("shop", 1)]))?;
    let mut provider = Provider::start(&stage, &edge, &library)?;
    stage.config.write("login", &policy(&provider))?;
    stage.config.write("pool-id", &config::pool("id", &[provider.address], "http1"))?;
    let _gateway = stage.gateway(&context.options())?;
    let mut figures = Figures::default();

    let person = Browser::new(&stage, &edge, "person");
    person.log_in("/cart?x=1", "alice")?;
    figures.add("logged in at the provider, with PKCE, and back to where the person wanted to go");
    scripts_and_strangers(&stage, &edge)?;
    figures
        .add("a script got 401, a state that is not this browser's 400, and no cookie of ours went upstream");
    person.refreshed()?;
    figures.add("the session was refreshed before it ended, with a refresh token that is good for one use");
    person.log_out(&provider)?;
    figures.add("logged out here and at the provider");
    let late = Browser::new(&stage, &edge, "late");
    let (_, back) = late.come_back("/late", "bob")?;
    let stays = Browser::new(&stage, &edge, "stays");
    stays.log_in("/", "carol")?;
    provider.process.kill();
    let answer = late.get(&back)?;
    ensure(answer.status == 503, || format!("the provider is away: {answer:?}"))?;
    for _ in 0..20 {
        let answer = stays.get(&stays.url("/"))?;
        ensure(answer.status == 200, || format!("a session while the provider is away: {answer:?}"))?;
    }
    figures.add("with the provider away a login is 503, and who is logged in does not notice");
    Ok(figures)
}

struct Provider {
    process: Process,
    address: std::net::SocketAddr,
}

impl Provider {
    fn start(stage: &Stage, edge: &Edge, library: &Path) -> Result<Self, String> {
        let address = ports::free();
        let program = stage.path().join("provider.mjs");
        std::fs::write(&program, PROGRAM).map_err(|error| error.to_string())?;
        let arguments = [
            program.display().to_string(),
            library.display().to_string(),
            address.port().to_string(),
            format!("https://{HOST}:{}", edge.tls.port()),
        ];
        let mut process = Process::start("provider", stage.path(), None, Path::new("node"), &arguments)?;
        process.wait_listening(address)?;
        Ok(Self { process, address })
    }
}

fn policy(provider: &Provider) -> String {
    let issuer = format!("http://{}", provider.address);
    format!(
        "apiVersion: v1
kind: Secret
metadata: {{name: login}}
stringData:
  client-secret: a secret of the client
  current: a secret of thirty-two bytes or more
---
apiVersion: fieldgate.dev/v1alpha1
kind: LoginPolicy
metadata: {{name: login}}
spec:
  targetRefs: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, name: shop}}]
  userHeader: x-user
  oidc:
    issuer: {issuer}
    authorizationEndpoint: {issuer}/auth
    tokenEndpoint: {issuer}/token
    endSessionEndpoint: {issuer}/session/end
    backendRef: {{group: fieldgate.dev, kind: Pool, name: id}}
    clientId: shop
    clientSecretRef: {{name: login}}
    cookieSecretRef: {{name: login}}
    afterLogout: /bye
    session: 10m
"
    )
}

/// A client that keeps cookies.
struct Browser {
    jar: PathBuf,
    flags: Vec<String>,
    base: String,
}

#[derive(Debug)]
struct Answer {
    status: u16,
    /// Where it leads, in full.
    location: String,
    head: String,
    body: String,
}

impl Browser {
    fn new(stage: &Stage, edge: &Edge, name: &str) -> Self {
        let [_, _, _, way] = edge.ways();
        Self { jar: stage.path().join(format!("{name}.jar")), flags: way.curl, base: way.base }
    }

    fn url(&self, target: &str) -> String {
        format!("{}{target}", self.base)
    }

    fn get(&self, url: &str) -> Result<Answer, String> {
        self.ask(url, &[])
    }

    fn ask(&self, url: &str, more: &[&str]) -> Result<Answer, String> {
        let jar = self.jar.display().to_string();
        let head = self.jar.with_extension("head");
        let output = Command::new("curl")
            .args(["-sS", "--max-time", "20", "-b", &jar, "-c", &jar, "-D"])
            .arg(&head)
            .args(["-w", "\n%{http_code} %{redirect_url}", "-H", "accept: text/html"])
            .args(&self.flags)
            .args(more)
            .arg(url)
            .output()
            .map_err(|error| format!("curl: {error}"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, last) = text.rsplit_once('\n').unwrap_or(("", &text));
        let (status, location) = last.split_once(' ').unwrap_or((last, ""));
        if !output.status.success() {
            return Err(format!("curl {url}: {}", String::from_utf8_lossy(&output.stderr)));
        }
        Ok(Answer {
            status: status.parse().map_err(|_| format!("curl {url}: {text}"))?,
            location: location.to_owned(),
            head: std::fs::read_to_string(head).unwrap_or_default(),
            body: body.to_owned(),
        })
    }

    /// Follows redirects as long as they stay with the provider; gives where the next leads.
    fn follow(&self, mut answer: Answer) -> Result<Answer, String> {
        for _ in 0..10 {
            if answer.location.is_empty() || answer.location.starts_with(&self.base) {
                return Ok(answer);
            }
            answer = self.get(&answer.location.clone())?;
        }
        Err(format!("redirected again and again: {answer:?}"))
    }

    /// Goes to a page, logs in at the provider, and stops before what the provider sends it back to: the page of the
    /// gateway that it came from, and where it is sent back.
    fn come_back(&self, target: &str, user: &str) -> Result<(Answer, String), String> {
        let begun = self.get(&self.url(target))?;
        ensure(begun.status == 302 && begun.location.contains("code_challenge_method=S256"), || {
            format!("nobody asked to log in: {begun:?}")
        })?;
        let mut page = self.follow(self.get(&begun.location)?)?;
        // A form for the password, and one for the consent.
        for form in [format!("prompt=login&login={user}&password=any"), "prompt=consent".to_owned()] {
            let action =
                between(&page.body, "action=\"", "\"").ok_or_else(|| format!("no form: {page:?}"))?;
            page = self.follow(self.ask(&action.replace("&amp;", "&"), &["--data", &form])?)?;
            if page.location.starts_with(&self.base) {
                break;
            }
        }
        let back = page.location.clone();
        ensure(back.starts_with(&self.url("/oauth2/callback?")), || format!("not sent back: {page:?}"))?;
        Ok((begun, back))
    }

    fn log_in(&self, target: &str, user: &str) -> Result<(), String> {
        let (_, back) = self.come_back(target, user)?;
        let answer = self.get(&back)?;
        ensure(answer.status == 302 && answer.location == self.url(target), || {
            format!("not back where it began: {answer:?}")
        })?;
        ensure(answer.head.contains("__Host-fieldgate-session="), || format!("no session: {answer:?}"))?;
        let page = self.get(&answer.location)?;
        ensure(page.status == 200, || format!("{target}: {page:?}"))?;
        // A code, and a login, are good for one use.
        let again = self.get(&back)?;
        ensure(again.status == 400, || format!("the same state again: {again:?}"))
    }

    fn refreshed(&self) -> Result<(), String> {
        let mut failed = None;
        wait::until(PATIENCE, "a session to be refreshed", || {
            let answer = self.get(&self.url("/")).ok()?;
            if answer.status != 200 {
                failed = Some(answer);
                return Some(());
            }
            answer.head.contains("__Host-fieldgate-session=").then_some(())
        })?;
        match failed {
            Some(answer) => Err(format!("a session that should have been refreshed: {answer:?}")),
            None => {
                // With what it got, too.
                let answer = self.get(&self.url("/"))?;
                ensure(answer.status == 200, || format!("after a refresh: {answer:?}"))
            }
        }
    }

    fn log_out(&self, provider: &Provider) -> Result<(), String> {
        let out = self.get(&self.url("/oauth2/logout"))?;
        let end = format!("http://{}/session/end?", provider.address);
        ensure(out.status == 303 && out.location.starts_with(&end), || format!("logout: {out:?}"))?;
        let page = self.get(&out.location)?;
        let xsrf = between(&page.body, "name=\"xsrf\" value=\"", "\"");
        let xsrf = xsrf.ok_or_else(|| format!("the provider asks for nothing: {page:?}"))?;
        let action = between(&page.body, "action=\"", "\"").unwrap_or_default();
        let form = format!("xsrf={xsrf}&logout=yes");
        let after = self.follow(self.ask(&action, &["--data", &form])?)?;
        ensure(after.location == self.url("/bye"), || format!("after a logout: {after:?}"))?;
        let page = self.get(&self.url("/"))?;
        ensure(page.status == 302, || format!("a page after a logout: {page:?}"))
    }
}

fn scripts_and_strangers(stage: &Stage, edge: &Edge) -> Result<(), String> {
    let browser = Browser::new(stage, edge, "stranger");
    let url = browser.url("/api");
    for flags in
        [&["-H", "x-requested-with: XMLHttpRequest"][..], &["-X", "POST"], &["-H", "sec-fetch-mode: cors"]]
    {
        let answer = browser.ask(&url, flags)?;
        ensure(answer.status == 401, || format!("{flags:?}: {answer:?}"))?;
    }
    let (_, back) = browser.come_back("/", "mallory")?;
    // The victim's browser is given the attacker's answer.
    let victim = Browser::new(stage, edge, "victim");
    for url in [back.as_str(), &victim.url("/oauth2/callback?code=x&state=yyyyyyyyyyyyyyyy")] {
        let answer = victim.get(url)?;
        ensure(answer.status == 400, || format!("somebody else's state: {answer:?}"))?;
    }
    Ok(())
}

fn between(text: &str, before: &str, after: &str) -> Option<String> {
    let start = text.find(before)? + before.len();
    Some(text[start..start + text[start..].find(after)?].to_owned())
}
