//! The shell of a document: a bash in its own directory, with the binary on its path.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::blocks::{Block, Kind, Run};
use super::expected;
use super::servers::Servers;
use crate::support::ports::free_port;
use crate::support::{BINARY, root};

/// The address of the service in documents.
const ADDRESS: &str = "127.0.0.1:8080";
/// The same where it speaks HTTPS.
const HTTPS: &str = "localhost:8443";
/// How long a command may take.
const DEADLINE: Duration = Duration::from_secs(300);
/// Directories that documents name, which are below the session's own.
const PLACES: [&str; 5] =
    ["/var/lib/kms-proxy", "/var/log/kms-proxy", "/run/secrets", "/etc/kms-proxy", "/backups"];

/// What every session starts with. `serve` is what `kms-proxy serve` becomes: it runs in the background,
/// on a free port, until the next one.
const PRELUDE: &str = r#"
exec 2>&1
set -o pipefail
start() {
  file="$HOME/$1" said="$2"
  shift 2
  stop
  # What the one before said must be gone before this one is looked for.
  : > "$HOME/served"
  : > "$HOME/log"
  kms-proxy serve "$@" --listen 127.0.0.1:0 > "$HOME/served" 2> "$HOME/log" &
  SERVICE=$!
  until grep -q "$said" "$file"; do
    if ! kill -0 $SERVICE 2>/dev/null; then cat "$HOME/log"; SERVICE=; return 1; fi
    sleep 0.02
  done
  cat "$HOME/served"
}
serve() {
  start served 'is ready on' "$@" || return 1
  export KMS_PROXY_SERVER="$(sed 's/.*ready on //; s/,.*//' "$HOME/served")"
  echo "$KMS_PROXY_SERVER" > "$HOME/address"
}
serve_unready() {
  start log 'the service is not ready yet' "$@" || return 1
  export KMS_PROXY_SERVER="$(sed -n 's/.*"url":"\([^"]*\)".*/\1/p' "$HOME/log")"
  echo "$KMS_PROXY_SERVER" > "$HOME/address"
}
stop() {
  if [ -n "$SERVICE" ]; then kill $SERVICE; wait $SERVICE; fi
  SERVICE=
}
make() {
  if [ "$*" = run ]; then serve; else echo "make $*: not here"; return 1; fi
}
# A document may start servers of its own.
trap 'stop; kill -9 $(jobs -p) 2> /dev/null; wait' EXIT
"#;

pub(super) struct Session {
    shell: Child,
    stdin: Option<ChildStdin>,
    output: Receiver<Vec<u8>>,
    address: Option<String>,
    /// Ports that the document names, each with the free one that it has here.
    ports: Vec<(String, String)>,
    servers: Servers,
    dir: TempDir,
}

impl Session {
    pub(super) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for place in PLACES {
            std::fs::create_dir_all(dir.path().join(place.trim_start_matches('/'))).unwrap();
        }
        let work = dir.path().join("work");
        std::fs::create_dir(&work).unwrap();
        let binaries = Path::new(BINARY).parent().unwrap().display();
        let python = root().join("target/test-env/bin");
        let mut shell = Command::new("bash");
        shell.args(["--noprofile", "--norc"]).current_dir(&work).env_clear();
        shell.env("HOME", dir.path()).env("LC_ALL", "C.UTF-8").env("REPOSITORY", root());
        shell.env(
            "PATH",
            format!("{binaries}:{}:/usr/local/bin:/usr/bin:/bin:/usr/sbin", python.display()),
        );
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut shell = shell.spawn().expect("bash is missing: apt-get install bash");
        let (mut stdout, (told, output)) = (shell.stdout.take().unwrap(), channel());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(len @ 1..) = stdout.read(&mut buffer) {
                if told.send(buffer[..len].to_vec()).is_err() {
                    break;
                }
            }
        });
        let stdin = shell.stdin.take();
        let servers = Servers::default();
        let ports = Vec::new();
        let mut session = Self { shell, stdin, output, address: None, ports, servers, dir };
        assert_eq!(session.command(PRELUDE), Ok((0, String::new())));
        session
    }

    /// Does what a block is there for.
    pub(super) async fn run(&mut self, block: &Block) -> Result<(), String> {
        match (&block.kind, &block.run) {
            (Kind::Settings, _) | (_, Run::Not(_)) => Ok(()),
            (Kind::Toml(file), _) => {
                let text = self.localised(&block.text);
                std::fs::write(self.path(file), text).map_err(|error| error.to_string())
            }
            (Kind::Console(steps), run) => {
                for (index, step) in steps.iter().enumerate() {
                    // A service that shows no line does not become ready.
                    let command = match step.command.strip_prefix("kms-proxy serve") {
                        Some(rest) if step.prints.is_empty() => format!("serve_unready{rest}"),
                        _ => step.command.clone(),
                    };
                    let (code, printed) = self.command(&command)?;
                    let failed = |why: &str| format!("$ {}\n{why}", step.command);
                    expected::compare(&step.prints, &printed).map_err(|why| failed(&why))?;
                    let fails = *run == Run::Fails && index + 1 == steps.len();
                    if (code != 0) != fails {
                        return Err(failed(&format!("it ended with {code}\n{printed}")));
                    }
                }
                Ok(())
            }
            (Kind::Hidden | Kind::Script, _) => {
                let needs = block.text.lines().filter_map(|line| line.strip_prefix("need "));
                for server in needs {
                    let variables = self.servers.start(server).await;
                    self.command(&variables)?;
                }
                let ports = block.text.lines().filter_map(|line| line.strip_prefix("ports "));
                let free = |port: &str| (port.to_owned(), free_port().to_string());
                self.ports.extend(ports.flat_map(str::split_whitespace).map(free));
                let is_own =
                    |line: &&str| !line.starts_with("need ") && !line.starts_with("ports ");
                let own = block.text.lines().filter(is_own);
                // What fails ends the shell, and with it the document.
                let script = own.collect::<Vec<_>>().join("\n");
                self.command(&format!("set -e\n{script}\nset +e")).map(|_| ())
            }
        }
    }

    fn path(&self, file: &str) -> PathBuf {
        let here = self.localised(file);
        if here == file { self.dir.path().join("work").join(file) } else { here.into() }
    }

    /// A text with the places and the address of this session.
    fn localised(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for place in PLACES {
            text = text.replace(place, &format!("{}{place}", self.dir.path().display()));
        }
        if let Some(address) = &self.address {
            text = text.replace(ADDRESS, address);
            let port = address.rsplit(':').next().unwrap_or_default();
            text = text.replace(HTTPS, &format!("localhost:{port}"));
        }
        renumbered(&text, self.ports.iter().map(|(shown, here)| (&**shown, &**here)))
    }

    /// Runs a command; its exit code, and what it printed as it would be printed elsewhere.
    fn command(&mut self, command: &str) -> Result<(i32, String), String> {
        let here = self.localised(command);
        let here = match here.strip_prefix("kms-proxy serve") {
            Some(rest) => format!("serve{rest}"),
            None => here,
        };
        let text = format!("{{ {here}\n}} < /dev/null\nprintf '\\001%s\\001' $?\n");
        let stdin = self.stdin.as_mut().ok_or("the shell has ended")?;
        stdin.write_all(text.as_bytes()).map_err(|error| error.to_string())?;
        let (start, mut bytes) = (Instant::now(), Vec::new());
        let (printed, code) = loop {
            let left = DEADLINE.saturating_sub(start.elapsed());
            let more = self.output.recv_timeout(left);
            let said = || String::from_utf8_lossy(&bytes).into_owned();
            bytes.extend(more.map_err(|error| format!("$ {command}\n{error}\n{}", said()))?);
            let mut parts = bytes.split(|&byte| byte == 1);
            if let (Some(printed), Some(code), Some(_)) = (parts.next(), parts.next(), parts.next())
            {
                let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
                break (text(printed), text(code));
            }
        };
        let mut printed = printed.replace(&self.dir.path().display().to_string(), "");
        // The service that was started last. Before the first start the file does not exist.
        if let Ok(url) = std::fs::read_to_string(self.dir.path().join("address")) {
            self.address = url.trim().split_once("://").map(|(_, address)| address.to_owned());
        }
        if let Some(address) = &self.address {
            printed = printed.replace(address.as_str(), ADDRESS);
        }
        let back = self.ports.iter().map(|(shown, here)| (&**here, &**shown));
        let printed = renumbered(&printed, back);
        Ok((code.parse().unwrap(), printed))
    }
}

/// A text with some of its numbers replaced, each where it is a word.
fn renumbered<'a>(text: &str, pairs: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> String {
    let (mut out, mut rest) = (String::new(), text);
    while !rest.is_empty() {
        let is_word = rest.starts_with(|c: char| c.is_ascii_alphanumeric());
        let end = rest.find(|c: char| c.is_ascii_alphanumeric() != is_word).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let new = pairs.clone().find(|(from, _)| *from == word);
        out.push_str(new.map_or(word, |(_, to)| to));
        rest = after;
    }
    out
}

impl Drop for Session {
    fn drop(&mut self) {
        // The end of its input is the end of the shell, which stops the service.
        drop(self.stdin.take());
        let _ = self.shell.wait();
    }
}
