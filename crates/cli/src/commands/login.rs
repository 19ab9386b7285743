//! `claviger login`, `claviger logout`: a person comes in by his OpenID Connect issuer.

use crate::connect::Connection;
use crate::exit::{self, Done, Failure};
use crate::login_file::{self, LoginFile};
use crate::render::print_text;
use claviger_client::{Error, Pending, People, exchange};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout, timeout_at};

/// How long a person has for his issuer's questions.
const PATIENCE: Duration = Duration::from_secs(300);
/// A browser that has connected asks at once.
const ASKS: Duration = Duration::from_secs(5);
/// Longest head of a browser's request; issuers' codes have some hundred bytes.
const HEAD_MAX: usize = 16 << 10;
/// Connections of one login: browsers ask for icons, and try again.
const CONNECTIONS_MAX: usize = 100;

/// Arguments of `claviger login`.
#[derive(clap::Args)]
#[command(after_help = "\
From a machine without a browser: ssh -L 8400:127.0.0.1:8400 MACHINE, there
claviger login --port 8400 …, and open the URL that it prints on your own machine.")]
pub struct Args {
    /// URL of your OpenID Connect issuer; one that the key server believes
    #[arg(long, env = "CLAVIGER_LOGIN_ISSUER", value_name = "URL")]
    issuer: String,
    /// Id by which the issuer knows claviger: a public client with the redirect URI
    /// http://127.0.0.1/callback
    #[arg(long, env = "CLAVIGER_LOGIN_CLIENT_ID", value_name = "ID", default_value = "claviger")]
    client_id: String,
    /// CA of the issuer, PEM; the system's CAs if not given
    #[arg(long, value_name = "FILE")]
    issuer_ca: Option<PathBuf>,
    /// Port on this machine to which the browser comes back; 0 picks a free one
    #[arg(long, default_value_t = 0)]
    port: u16,
    #[command(flatten)]
    connection: Connection,
}

/// Logs in.
pub fn run(args: Args) -> Done {
    let (url, ca_file) = args.connection.server()?;
    let path = login_file::path()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(exit::FAULT, format!("cannot start: {e}"), "try again"))?;
    runtime.block_on(async {
        let people =
            People::discover(&args.issuer, &args.client_id, args.issuer_ca.as_deref()).await;
        let people = people.map_err(issuer)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, args.port)).await;
        let bound = listener.and_then(|listener| Ok((listener.local_addr()?.port(), listener)));
        let (port, listener) = bound.map_err(|e| {
            let error = format!("cannot listen on 127.0.0.1:{}: {e}", args.port);
            Failure::new(exit::UNREACHABLE, error, "give another --port, or none")
        })?;
        let (page, pending) = people.begin(&format!("http://127.0.0.1:{port}/callback"));
        print_text("open this in your browser:");
        print_text(&page);
        let code = code(&listener, &people, &pending).await?;
        let logged_in = people.redeem(&pending, &code).await.map_err(issuer)?;
        let token = exchange(&url, &ca_file, &logged_in).await.map_err(|e| {
            let about = format!("you are the subject {:?} of {}", logged_in.subject, args.issuer);
            let failure = Failure::from(e);
            Failure { hint: about, ..failure }
        })?;
        login_file::write(&path, &LoginFile { url, issuer: args.issuer, refresh_token: token })?;
        print_text(&format!("logged in as {}; until: claviger logout", logged_in.subject));
        Ok(())
    })
}

fn issuer(e: Error) -> Failure {
    let hint = match &e {
        Error::Tls { .. } => "is --issuer-ca the CA of the issuer?",
        Error::Refused { .. } => "does the issuer know --client-id, with this redirect URI?",
        _ => "is --issuer the issuer's URL, as it writes it itself?",
    };
    Failure { hint: hint.to_owned(), ..Failure::from(e) }
}

/// Waits for the browser to come back, and takes the code that it brings. What belongs to no login
/// of ours is answered and forgotten: any page can send a browser here.
async fn code(
    listener: &TcpListener,
    people: &People,
    pending: &Pending,
) -> Result<String, Failure> {
    let deadline = Instant::now() + PATIENCE;
    for _ in 0..CONNECTIONS_MAX {
        let late = |_| {
            let error = "the browser did not come back within five minutes";
            Failure::new(
                exit::UNKNOWN,
                error,
                "try again; from another machine: --port, and ssh -L",
            )
        };
        let accepted = timeout_at(deadline, listener.accept()).await.map_err(late)?;
        let Ok((mut stream, _)) = accepted else { continue };
        let Ok(Some(target)) = timeout(ASKS, target(&mut stream)).await else { continue };
        match brought(&target, people, pending) {
            Brought::Nothing => answer(&mut stream, "404 Not Found", "nothing is here").await,
            Brought::Foreign => {
                answer(&mut stream, "400 Bad Request", "this belongs to another login").await;
            }
            Brought::Refusal(why) => {
                answer(&mut stream, "200 OK", "The issuer refused. You can close this page.").await;
                let error = format!("the issuer refused: {why}");
                return Err(Failure::new(exit::NO, error, ""));
            }
            Brought::Code(code) => {
                answer(&mut stream, "200 OK", "Go on in the terminal. You can close this page.")
                    .await;
                return Ok(code);
            }
        }
    }
    Err(Failure::new(exit::UNKNOWN, "too many came who were not the browser", "try again"))
}

/// What a browser brings.
#[derive(Debug, PartialEq, Eq)]
enum Brought {
    Nothing,
    Foreign,
    Refusal(String),
    Code(String),
}

fn brought(target: &str, people: &People, pending: &Pending) -> Brought {
    let Some(query) = target.strip_prefix("/callback?") else { return Brought::Nothing };
    let field = |name: &str| {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let mut found = pairs.filter(|(n, _)| *n == name).map(|(_, value)| decoded(value));
        found.next()
    };
    let ours = field("state").is_some_and(|state| pending.is_state(&state));
    if !ours || !people.is_issuer(field("iss").as_deref()) {
        return Brought::Foreign;
    }
    match (field("code"), field("error")) {
        (Some(code), None) => Brought::Code(code),
        (_, error) => Brought::Refusal(error.unwrap_or_else(|| "it gave no code".to_owned())),
    }
}

/// Undoes the encoding of a query (WHATWG URL standard, section 5.1).
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let digit = |at: usize| char::from(*bytes.get(at)?).to_digit(16);
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match (bytes[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 2;
            }
            (b'+', ..) => out.push(b' '),
            (byte, ..) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Path and query of a request for a page; none if it is no such request.
async fn target(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() > HEAD_MAX || stream.read_buf(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    let head = String::from_utf8(head).ok()?;
    let mut words = head.lines().next()?.split(' ');
    (words.next()? == "GET").then(|| words.next().map(str::to_owned))?
}

async fn answer(stream: &mut TcpStream, status: &str, text: &str) {
    let page = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{text}",
        text.len()
    );
    // The browser may be gone; what it brought counts all the same.
    let _ = timeout(ASKS, stream.write_all(page.as_bytes())).await;
}

/// `claviger logout`
pub fn logout() -> Done {
    let path = login_file::path()?;
    if login_file::remove(&path)? {
        print_text("logged out");
    } else {
        print_text("nobody was logged in");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        for (text, plain) in [
            ("a", "a"),
            ("a+b%2Fc", "a b/c"),
            ("%C3%BC", "ü"),
            ("%", "%"),
            ("%zz", "%zz"),
            ("%4", "%4"),
        ] {
            assert_eq!(decoded(text), plain, "{text}");
        }
    }
}
