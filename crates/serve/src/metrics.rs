//! Numbers of a server in Prometheus' text format
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>).

use std::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Upper bounds of the seconds that are counted apart.
const SECONDS: [f64; 12] = [
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0,
];

/// Counters of what happened, and gauges of what is.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// Answers by their status, the first digit of it.
    answers: [AtomicU64; 6],
    pub(crate) prompt_tokens: AtomicU64,
    pub(crate) generated_tokens: AtomicU64,
    /// Steps, and the texts that got a token in them.
    pub(crate) steps: AtomicU64,
    pub(crate) stepped: AtomicU64,
    pub(crate) cancelled: AtomicU64,
    pub(crate) running: AtomicU64,
    pub(crate) waiting: AtomicU64,
    pub(crate) cached_tokens: AtomicU64,
    pub(crate) first_token: Histogram,
    pub(crate) request: Histogram,
}

/// Durations by how long they were.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; SECONDS.len()],
    n: AtomicU64,
    microseconds: AtomicU64,
}

impl Histogram {
    pub(crate) fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        for (bucket, bound) in self.buckets.iter().zip(SECONDS) {
            if seconds <= bound {
                bucket.fetch_add(1, Relaxed);
            }
        }
        self.n.fetch_add(1, Relaxed);
        self.microseconds
            .fetch_add(duration.as_micros() as u64, Relaxed);
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        header(out, name, "histogram", help);
        let n = self.n.load(Relaxed);
        for (bucket, bound) in self.buckets.iter().zip(SECONDS) {
            let at_most = bucket.load(Relaxed);
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {at_most}");
        }
        let seconds = self.microseconds.load(Relaxed) as f64 / 1e6;
        let _ = writeln!(
            out,
            "{name}_bucket{{le=\"+Inf\"}} {n}\n{name}_sum {seconds}\n{name}_count {n}"
        );
    }
}

fn header(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

impl Metrics {
    pub(crate) fn answered(&self, status: u16) {
        if let Some(count) = self.answers.get(usize::from(status / 100)) {
            count.fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        header(
            &mut out,
            "olora_http_requests_total",
            "counter",
            "Requests that were answered, by the kind of status",
        );
        for (digit, count) in self.answers.iter().enumerate().skip(2) {
            let count = count.load(Relaxed);
            let _ = writeln!(
                out,
                "olora_http_requests_total{{status=\"{digit}xx\"}} {count}"
            );
        }
        let counters = [
            (
                "olora_prompt_tokens_total",
                "Tokens of prompts that were read",
                &self.prompt_tokens,
            ),
            (
                "olora_generated_tokens_total",
                "Tokens that were generated",
                &self.generated_tokens,
            ),
            (
                "olora_steps_total",
                "Steps in which texts got a token each",
                &self.steps,
            ),
            (
                "olora_stepped_texts_total",
                "Texts that got a token, over all steps; by steps, the mean batch",
                &self.stepped,
            ),
            (
                "olora_cancelled_total",
                "Texts whose client left before their end",
                &self.cancelled,
            ),
        ];
        for (name, help, value) in counters {
            header(&mut out, name, "counter", help);
            let _ = writeln!(out, "{name} {}", value.load(Relaxed));
        }
        let gauges = [
            (
                "olora_running",
                "Texts that are being continued",
                &self.running,
            ),
            ("olora_waiting", "Texts that wait", &self.waiting),
            (
                "olora_cached_tokens",
                "Positions that are reserved in caches",
                &self.cached_tokens,
            ),
        ];
        for (name, help, value) in gauges {
            header(&mut out, name, "gauge", help);
            let _ = writeln!(out, "{name} {}", value.load(Relaxed));
        }
        self.first_token.write(
            &mut out,
            "olora_first_token_seconds",
            "Seconds from a request to its first token",
        );
        self.request.write(
            &mut out,
            "olora_request_seconds",
            "Seconds from a request to the end of its answer",
        );
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_count_all_that_are_no_longer() {
        let metrics = Metrics::default();
        metrics.answered(200);
        metrics.answered(404);
        for milliseconds in [5, 60, 700_000] {
            let took = Duration::from_millis(milliseconds);
            metrics.request.observe(took);
        }
        let text = metrics.text();
        for line in [
            "olora_http_requests_total{status=\"2xx\"} 1",
            "olora_http_requests_total{status=\"4xx\"} 1",
            "olora_request_seconds_bucket{le=\"0.01\"} 1",
            "olora_request_seconds_bucket{le=\"0.1\"} 2",
            "olora_request_seconds_bucket{le=\"+Inf\"} 3",
            "olora_request_seconds_count 3",
            "olora_request_seconds_sum 700.065",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
