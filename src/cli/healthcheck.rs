//! `jobcache healthcheck`: the HEALTHCHECK of a container, which has no curl.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use jobcache::config::ListenAddress;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::timeout,
};

/// For the whole exchange.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Length of `HTTP/1.1 200`.
const STATUS_LEN: usize = 12;

/// Sends `GET /livez` to the admin address; the error is the sentence to print.
pub(crate) async fn run(admin: &ListenAddress) -> Result<(), String> {
    let admin = dial_address(admin);
    let page = match &admin {
        ListenAddress::Tcp(admin) => format!("http://{admin}/livez"),
        ListenAddress::Unix(_) => format!("/livez at {admin}"),
    };
    match timeout(TIMEOUT, livez(&admin)).await {
        Ok(Ok(status)) if status == "200" => Ok(()),
        Ok(Ok(status)) => Err(format!("{page} answers {status}")),
        Ok(Err(error)) => Err(format!("{page} does not answer: {error}")),
        Err(_) => Err(format!("{page} does not answer within {}s", TIMEOUT.as_secs())),
    }
}

async fn livez(admin: &ListenAddress) -> io::Result<String> {
    match admin {
        ListenAddress::Tcp(admin) => {
            ask(TcpStream::connect(admin).await?, &admin.to_string()).await
        }
        ListenAddress::Unix(path) => ask(UnixStream::connect(path).await?, "localhost").await,
    }
}

async fn ask(mut io: impl AsyncRead + AsyncWrite + Unpin, host: &str) -> io::Result<String> {
    let request = format!("GET /livez HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    io.write_all(request.as_bytes()).await?;
    let mut line = [0; STATUS_LEN];
    io.read_exact(&mut line).await?;
    let line = String::from_utf8_lossy(&line);
    let status = line.strip_prefix("HTTP/1.1 ").ok_or(io::ErrorKind::InvalidData)?;
    Ok(status.to_owned())
}

/// Replaces a wildcard address by loopback.
fn dial_address(admin: &ListenAddress) -> ListenAddress {
    let ListenAddress::Tcp(admin) = admin else { return admin.clone() };
    let ip = match admin.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, admin.port()).into()
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn an_address_that_listens_everywhere_is_dialled_as_loopback() {
        for (admin, expected) in [
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:1", "[::1]:1"),
            ("10.0.0.1:1", "10.0.0.1:1"),
            ("unix:/a", "unix:/a"),
        ] {
            let admin = admin.parse().unwrap();
            assert_eq!(dial_address(&admin).to_string(), expected);
        }
    }

    async fn answered(reply: &'static str) -> Result<(), String> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let admin = listener.local_addr().unwrap();
        let address = ListenAddress::from(admin);
        let server = async {
            let (mut io, _) = listener.accept().await.unwrap();
            let mut request = [0; 64];
            let read = io.read(&mut request).await.unwrap();
            assert!(
                request.iter().take(read).copied().collect::<Vec<_>>().starts_with(b"GET /livez")
            );
            io.write_all(reply.as_bytes()).await.unwrap();
        };
        let (outcome, ()) = tokio::join!(run(&address), server);
        outcome.map_err(|error| error.replace(&admin.to_string(), "ADMIN"))
    }

    #[tokio::test]
    async fn only_a_200_is_healthy() {
        assert_eq!(answered("HTTP/1.1 200 OK\r\n\r\n").await, Ok(()));
        let error = Err("http://ADMIN/livez answers 503".to_owned());
        assert_eq!(answered("HTTP/1.1 503 No\r\n\r\n").await, error);
        assert!(answered("SSH-2.0-OpenSSH_9.2\r\n").await.is_err());
    }
}
