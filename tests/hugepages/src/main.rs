//! Borrows huge pages by hand, until its standard input ends or it is killed: `borrow-hugepages BYTES_OF_A_PAGE PAGES`.
#![forbid(unsafe_code)]

use std::io::Read;
use std::process::ExitCode;

use pageless_hugepages::Borrowed;

fn main() -> ExitCode {
    let arguments: Vec<u64> = std::env::args().skip(1).map_while(|argument| argument.parse().ok()).collect();
    let [page, pages] = arguments[..] else {
        eprintln!("usage: borrow-hugepages BYTES_OF_A_PAGE PAGES");
        return ExitCode::from(2);
    };
    match Borrowed::pages(page, pages) {
        Ok(_pages) => {
            println!("borrowed {pages}");
            let _ = std::io::stdin().read(&mut [0]);
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}
