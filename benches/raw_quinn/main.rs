//! What QUIC itself does on this machine's loopback: the reference for whatever is replicated over it.
//!
//! Two endpoints on two threads, each on a `current_thread` runtime, as two daemons are; windows, buffers, packet sizes and
//! cipher as `qrbd-transport` sets them for local networks. One unidirectional stream for the throughput, one bidirectional
//! stream for requests of 4 KiB that are answered by 16 bytes, one at a time. No disks, no frames, no replication, and no
//! proof of a shared key: the server's key is taken as it comes, so this is a measuring tool and nothing else.
//!
//! `qrbd-raw-quinn --packet 8972 --seconds 2` prints one line of JSON.

#![forbid(unsafe_code)]

mod network;
mod tls;

use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use quinn::{Connection, Endpoint};

const CHUNK_BYTES: usize = 256 << 10;
const REQUEST_BYTES: usize = 4 << 10;
const ANSWER_BYTES: usize = 16;
const READ_BYTES: usize = 1 << 20;
/// Packet size discovery, first growth of buffers.
const WARM_UP: Duration = Duration::from_millis(300);

/// The command line.
struct Arguments {
    packet_bytes: u16,
    measure: Duration,
}

fn arguments() -> Result<Arguments> {
    let mut found = Arguments {
        packet_bytes: 8972,
        measure: Duration::from_secs(2),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words
            .next()
            .with_context(|| format!("{word} needs a value"))?;
        match word.as_str() {
            "--packet" => {
                found.packet_bytes = value.parse().context("--packet is a number of bytes")?;
                ensure!(
                    (1200..=8972).contains(&found.packet_bytes),
                    "--packet must be within 1200..=8972, not {value}"
                );
            }
            "--seconds" => {
                let seconds: f64 = value.parse().context("--seconds is a number")?;
                ensure!(
                    seconds > 0.0 && seconds <= 600.0,
                    "--seconds must be within 0..=600, not {value}"
                );
                found.measure = Duration::from_secs_f64(seconds);
            }
            _ => bail!("unknown argument '{word}': there are --packet BYTES and --seconds NUMBER"),
        }
    }
    Ok(found)
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

fn main() -> Result<()> {
    let arguments = arguments()?;
    let packet_bytes = arguments.packet_bytes;
    let (sender, address) = mpsc::channel();
    let server = std::thread::spawn(move || -> Result<()> {
        runtime()?.block_on(async {
            let endpoint = network::endpoint(packet_bytes)?;
            sender.send(endpoint.local_addr()?)?;
            serve(&endpoint).await
        })
    });
    let measured = address
        .recv()
        .context("the server did not start")
        .and_then(|address| runtime()?.block_on(run(&arguments, address)));
    server.join().expect("the server does not panic")?;
    println!("{}", measured?);
    Ok(())
}

/// Answers what comes until the client closes: a request stream, and then streams that are only read.
async fn serve(endpoint: &Endpoint) -> Result<()> {
    let connection = endpoint.accept().await.context("no connection")?.await?;
    let (mut answers, mut requests) = connection.accept_bi().await?;
    let mut request = vec![0; REQUEST_BYTES];
    while requests.read_exact(&mut request).await.is_ok() {
        answers.write_all(&[1; ANSWER_BYTES]).await?;
    }
    while let Ok(mut stream) = connection.accept_uni().await {
        while stream.read_chunk(READ_BYTES, true).await?.is_some() {}
        // Tells the sender that all of it was read.
        connection.open_uni().await?.finish()?;
    }
    endpoint.wait_idle().await;
    Ok(())
}

async fn run(arguments: &Arguments, address: SocketAddr) -> Result<String> {
    let endpoint = network::endpoint(arguments.packet_bytes)?;
    let connection = endpoint.connect(address, "qrbd")?.await?;
    let times = round_trips(&connection, arguments.measure).await?;
    throughput(&connection, WARM_UP).await?;
    let bytes_per_second = throughput(&connection, arguments.measure).await?;
    let packet_bytes = connection.stats().path.current_mtu;
    connection.close(0u32.into(), b"done");
    endpoint.wait_idle().await;

    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    let mean = times.iter().sum::<f64>() / times.len() as f64;
    Ok(format!(
        "{{\"packet_bytes\": {packet_bytes}, \"bytes_per_second\": {bytes_per_second:.0}, \"round_trips\": {}, \
         \"latency_us\": {{\"mean\": {mean:.2}, \"p50\": {:.2}, \"p99\": {:.2}}}}}",
        times.len(),
        at(0.5),
        at(0.99)
    ))
}

/// Microseconds of each request and its answer, sorted.
async fn round_trips(connection: &Connection, measure: Duration) -> Result<Vec<f64>> {
    let (mut requests, mut answers) = connection.open_bi().await?;
    let request = Bytes::from(vec![0x5a; REQUEST_BYTES]);
    let mut answer = [0; ANSWER_BYTES];
    let mut times = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < WARM_UP + measure {
        let sent = Instant::now();
        requests.write_chunk(request.clone()).await?;
        answers.read_exact(&mut answer).await?;
        if begun.elapsed() > WARM_UP {
            times.push(sent.elapsed().as_secs_f64() * 1e6);
        }
    }
    requests.finish()?;
    ensure!(!times.is_empty(), "no request was answered in time");
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// Bytes per second of one stream, until the last byte was read at the other end.
async fn throughput(connection: &Connection, measure: Duration) -> Result<f64> {
    let chunk = Bytes::from(vec![0x5a; CHUNK_BYTES]);
    let mut stream = connection.open_uni().await?;
    let begun = Instant::now();
    let mut sent = 0u64;
    while begun.elapsed() < measure {
        stream.write_chunk(chunk.clone()).await?;
        sent += CHUNK_BYTES as u64;
    }
    stream.finish()?;
    let mut all_read = connection.accept_uni().await?;
    all_read.read_to_end(0).await?;
    Ok(sent as f64 / begun.elapsed().as_secs_f64())
}
