//! A headless Chromium on a folder of files: serves them, opens the page, waits for the report that the page posts.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Sender};
use std::time::Duration;

/// Chromium's program.
pub struct Browser(PathBuf);

/// A browser under way; it ends when this is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How long a page may ask for nothing: it fetches each kernel when it comes to it, however many there are.
const PATIENCE: Duration = Duration::from_secs(600);

/// What the page did.
enum Sign {
    Asked,
    Reported(String),
}

impl Browser {
    /// Finds one, by `BITSMITH_CHROMIUM` or on the path.
    pub fn find(test: &str) -> Option<Browser> {
        let named = std::env::var_os("BITSMITH_CHROMIUM").map(PathBuf::from);
        let usual = ["chromium", "chromium-browser", "google-chrome"].map(PathBuf::from);
        let works = |program: &PathBuf| {
            let output = Command::new(program).arg("--version").stderr(Stdio::null()).output();
            output.is_ok_and(|output| output.status.success())
        };
        let found = named.into_iter().chain(usual).find(works);
        if found.is_none() {
            crate::skip("chromium", test, "Chromium is absent (apt install chromium)");
        }
        found.map(Browser)
    }

    /// Opens the page of a folder in a fresh profile; what it posts to `report`. Each kernel is launched twice, the second
    /// time for its time.
    pub fn report(&self, folder: &Path) -> Result<String, String> {
        let profile = tempfile::tempdir().map_err(|error| error.to_string())?;
        let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        let (sender, receiver) = mpsc::channel();
        let root = folder.to_path_buf();
        // It serves until the process ends.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (root, sender) = (root.clone(), sender.clone());
                std::thread::spawn(move || serve(stream, &root, &sender));
            }
        });
        let log = profile.path().join("log");
        let errors = std::fs::File::create(&log).map_err(|error| error.to_string())?;
        let child = Command::new(&self.0)
            // The tests may run as root, where Chromium has no sandbox; SwiftShader is its own Vulkan on the CPU.
            .args([
                "--headless=new",
                "--no-sandbox",
                "--no-first-run",
                "--disable-extensions",
                "--disable-dev-shm-usage",
            ])
            .args(["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"])
            .arg(format!("--user-data-dir={}", profile.path().join("profile").display()))
            .arg(format!("http://{address}/index.html?once&report=/report"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .map_err(|error| format!("{}: {error}", self.0.display()))?;
        let running = Running(child);
        let report = loop {
            match receiver.recv_timeout(PATIENCE) {
                Ok(Sign::Asked) => {}
                Ok(Sign::Reported(report)) => break Ok(report),
                Err(silence) => break Err(silence),
            }
        };
        drop(running);
        report.map_err(|_| {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            let last: Vec<&str> = said.lines().rev().take(8).collect();
            format!("the page asked for nothing for {} s; the browser said: {}", PATIENCE.as_secs(), last.join("\n"))
        })
    }
}

/// Answers one request: a file of the folder, or the report.
fn serve(stream: TcpStream, root: &Path, signs: &Sender<Sign>) {
    let mut reader = BufReader::new(&stream);
    let (mut request, mut length) = (String::new(), 0);
    if reader.read_line(&mut request).is_err() {
        return;
    }
    loop {
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) if line.trim().is_empty() => break,
            Ok(_) => {
                if let Some((name, value)) = line.split_once(':')
                    && name.eq_ignore_ascii_case("content-length")
                {
                    length = value.trim().parse().unwrap_or(0);
                }
            }
        }
    }
    let mut words = request.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let name = path.split('?').next().unwrap_or_default().trim_start_matches('/');
    let (status, kind, body) = if method == "POST" {
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_ok() {
            // Nobody waits any more where the browser was too slow.
            let _ = signs.send(Sign::Reported(String::from_utf8_lossy(&body).into_owned()));
        }
        ("200 OK", "text/plain", Vec::new())
    } else {
        let _ = signs.send(Sign::Asked);
        match std::fs::read(root.join(name)) {
            Ok(body) if !name.contains("..") => {
                ("200 OK", if name.ends_with(".html") { "text/html" } else { "application/octet-stream" }, body)
            }
            _ => ("404 Not Found", "text/plain", Vec::new()),
        }
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let mut stream = &stream;
    // A browser that went away needs no answer.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
}
