//! What tests share.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A headless Chromium.
pub struct Browser(PathBuf);

/// A page as a browser has it after its scripts ran.
pub struct Seen {
    pub dom: String,
    /// What was written to the console: nothing, unless there was an error.
    pub console: String,
}

impl Seen {
    /// The end of the page, for messages.
    pub fn tail(&self) -> &str {
        let start = self.dom.char_indices().rev().nth(1500).map_or(0, |(at, _)| at);
        &self.dom[start..]
    }
}

impl Browser {
    /// The one of this machine; says so where there is none.
    pub fn find() -> Option<Self> {
        let folders = std::env::var_os("PATH")?;
        let known = ["chromium", "chromium-browser", "google-chrome"];
        let all = std::env::split_paths(&folders).flat_map(|folder| known.map(|name| folder.join(name)));
        let found = all.into_iter().find(|path| path.is_file()).map(Self);
        if found.is_none() {
            println!("skipped: no chromium is installed");
        }
        found
    }

    /// Opens a page in a window so many pixels wide.
    pub fn dom(&self, page: &Path, width: u32) -> Seen {
        self.open(page, width, &["--dump-dom"])
    }

    /// As [`Browser::dom`], for a person who prefers dark pages.
    pub fn dark_dom(&self, page: &Path, width: u32) -> Seen {
        self.open(page, width, &["--dump-dom", "--force-dark-mode"])
    }

    /// The page as it is printed, a PDF.
    pub fn print(&self, page: &Path) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("page.pdf");
        self.open(page, 1280, &[&format!("--print-to-pdf={}", path.display())]);
        std::fs::read(path).unwrap()
    }

    fn open(&self, page: &Path, width: u32, more: &[&str]) -> Seen {
        let profile = tempfile::tempdir().unwrap();
        let output = Command::new(&self.0)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions"])
            .args(["--enable-logging=stderr", "--log-level=0", "--virtual-time-budget=2000"])
            .args(more)
            .arg(format!("--window-size={width},900"))
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg(format!("file://{}", page.display()))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let stderr = String::from_utf8_lossy(&output.stderr);
        let console = stderr.lines().filter(|line| line.contains("CONSOLE")).collect::<Vec<_>>().join("\n");
        Seen { dom: String::from_utf8_lossy(&output.stdout).into_owned(), console }
    }
}
