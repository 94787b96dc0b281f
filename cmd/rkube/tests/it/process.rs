//! Runs the binary with folders and a port of its own.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use tempfile::TempDir;

/// For a debug build on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(120);

const RKUBE: &str = env!("CARGO_BIN_EXE_rkube");
const NOBODY: u32 = 65534;
/// Not a flag of the program: the server has a node, too.
pub(crate) const WITH_AGENT: &str = "--with-agent";

/// A machine that has a data directory, a configuration file and a free port.
pub(crate) struct Machine {
    pub(crate) folder: TempDir,
    pub(crate) port: u16,
    mounts: Option<String>,
}

pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    /// The last line of standard error, paths and port replaced.
    pub(crate) last: String,
    pub(crate) stderr: String,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.yaml"), "").unwrap();
        Self { folder, port: free_port().parse().unwrap(), mounts: None }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = match &self.mounts {
            None => Command::new(RKUBE),
            Some(mounts) => self.among(mounts),
        };
        command.args(arguments).env_clear().stdin(Stdio::null()).current_dir(self.folder.path());
        command
    }

    /// The program in a mount namespace of its own, where a shell makes mounts before it becomes the program. They
    /// go with the process.
    fn among(&self, mounts: &str) -> Command {
        let mut command = Command::new("/usr/bin/unshare");
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        let script = format!("PATH=/usr/sbin:/usr/bin:/sbin:/bin; {mounts}\nexec \"$@\"");
        command.args(["--mount", "/bin/sh", "-euc", &script, "sh", RKUBE]);
        command
    }

    /// From now on every process of this machine has mounts of its own, made by `script` in the machine's folder.
    pub(crate) fn mounting(mut self, script: &str) -> Self {
        self.mounts = Some(script.to_owned());
        self
    }

    /// Arguments of a server on this machine; `more` are flags and values that add to them or take their place.
    /// Without `--with-agent` among them it has no node.
    fn server_arguments(&self, more: &[&str]) -> Vec<String> {
        let path = |name: &str| self.path(name).display().to_string();
        let usual = [
            ("--bind-address", "127.0.0.1".to_owned()),
            ("--advertise-address", "127.0.0.1".to_owned()),
            ("--data-dir", path("data")),
            ("--write-kubeconfig", path("admin.yaml")),
            ("--config", path("config.yaml")),
            ("--https-listen-port", self.port.to_string()),
        ];
        let usual = usual.into_iter().filter(|(flag, _)| !more.contains(flag));
        let usual = usual.flat_map(|(flag, value)| [flag.to_owned(), value]);
        let (agent, more): (Vec<&str>, Vec<&str>) = more.iter().partition(|&&text| text == WITH_AGENT);
        let start = ["server"].into_iter().chain(agent.is_empty().then_some("--disable-agent")).map(str::to_owned);
        start.chain(usual).chain(more.into_iter().map(str::to_owned)).collect()
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Outcome {
        self.outcome(self.command(arguments))
    }

    /// Runs a server as a user that is not root and expects it to end by itself.
    pub(crate) fn run_server_as_nobody(&self, more: &[&str]) -> Outcome {
        let mut command = self.command(&[]);
        if rustix::process::geteuid().is_root() {
            // The folders above the program may be closed to others.
            let program = self.path("rkube");
            std::fs::copy(RKUBE, &program).unwrap();
            std::fs::set_permissions(self.folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
            command = Command::new(program);
            command.env_clear().stdin(Stdio::null()).current_dir(self.folder.path()).uid(NOBODY).gid(NOBODY);
        }
        command.args(self.server_arguments(more));
        self.outcome(command)
    }

    fn outcome(&self, mut command: Command) -> Outcome {
        let output = command.output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        Outcome {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            last: self.anonymous(stderr.lines().last().unwrap_or_default()),
            stderr,
        }
    }

    /// Runs a server that is expected to end by itself.
    pub(crate) fn run_server(&self, more: &[&str]) -> Outcome {
        let arguments = self.server_arguments(more);
        self.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn anonymous(&self, text: &str) -> String {
        text.replace(&self.folder.path().display().to_string(), "D").replace(&self.port.to_string(), "PORT")
    }

    /// Starts a server and waits until it is ready.
    pub(crate) fn start(&self, more: &[&str]) -> Server {
        let arguments = self.server_arguments(more);
        let all: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut child = self.command(&all).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (sender, receiver) = mpsc::channel();
        // Read on for as long as the process lives: a full pipe would stop it.
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let mut server = Server { child, lines: receiver, log: String::new() };
        server.wait_for(": Ready");
        server
    }

    /// Stops a server and starts it anew.
    pub(crate) fn start_again(&self, server: Server) -> Server {
        assert_eq!(server.stop(), Some(0));
        self.start(&[])
    }

    /// Every file under `name` but the datastore's, with its content and mode.
    pub(crate) fn contents(&self, name: &str) -> BTreeMap<PathBuf, (Vec<u8>, u32)> {
        let mut all = BTreeMap::new();
        let mut folders = vec![self.path(name)];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    if !path.ends_with("db") {
                        folders.push(path);
                    }
                } else {
                    let mode = path.metadata().unwrap().permissions().mode() & 0o777;
                    all.insert(path.clone(), (std::fs::read(path).unwrap(), mode));
                }
            }
        }
        all
    }

    pub(crate) fn token(&self) -> String {
        std::fs::read_to_string(self.path("data/server/token")).unwrap().trim().to_owned()
    }
}

/// A port that nobody listens on; whoever is told one next is not told the same for a while.
pub(crate) fn free_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string()
}

/// A server that runs; ended with the test.
pub(crate) struct Server {
    child: Child,
    lines: mpsc::Receiver<String>,
    log: String,
}

impl Server {
    /// Reads the log until a line holds `text`.
    pub(crate) fn wait_for(&mut self, text: &str) {
        loop {
            match self.lines.recv_timeout(START_TIMEOUT) {
                Ok(line) => {
                    self.log.push_str(&line);
                    self.log.push('\n');
                    if line.contains(text) {
                        return;
                    }
                }
                Err(error) => panic!("waiting for {text:?} in the log: {error}\n{}", self.log),
            }
        }
    }

    /// A file as the server sees it, among its own mounts.
    pub(crate) fn path(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.child.id()));
        root.join(path.strip_prefix("/").unwrap_or(path))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGTERM; all that was logged from start to end.
    pub(crate) fn stop_and_tell(mut self) -> String {
        self.signal("TERM");
        let status = self.child.wait().unwrap();
        assert_eq!(status.code(), Some(0));
        // The pipe is closed with the process, and its reader ends.
        while let Ok(line) = self.lines.recv_timeout(START_TIMEOUT) {
            self.log.push_str(&line);
            self.log.push('\n');
        }
        std::mem::take(&mut self.log)
    }

    pub(crate) fn signal(&self, name: &str) {
        let done = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(done.success());
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; the exit code.
    pub(crate) fn stop(mut self) -> Option<i32> {
        self.signal("TERM");
        let status = self.child.wait().unwrap();
        assert_eq!(status.signal(), None);
        status.code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a path is under one of the others.
pub(crate) fn relative(path: &Path, folder: &Path) -> String {
    path.strip_prefix(folder).unwrap_or(path).display().to_string()
}
