//! Lines that are taken, written, refused and lost, and the calls that wait for them.

use std::task::Poll;

use super::*;
use crate::metrics::Registry;

fn queue(refuses: bool) -> Queue {
    Queue::new(refuses, Metrics::new(&Registry::new()).unwrap())
}

fn waits(taken: Taken) -> Written {
    match taken {
        Taken::Waiting(written) => written,
        Taken::Lost | Taken::Refused => panic!("it is not taken"),
    }
}

fn take(queue: &Queue) -> Work {
    queue.take(Vec::new(), Duration::ZERO)
}

#[tokio::test]
async fn all_lines_that_wait_are_one_batch() {
    let queue = queue(true);
    let (one, two) = (waits(queue.submit(b"a\n", 1)), waits(queue.submit(b"b\nc\n", 2)));
    let work = take(&queue);
    assert_eq!((&*work.lines, work.count), (&b"a\nb\nc\n"[..], 3));
    let next = waits(queue.submit(b"d\n", 1));
    assert_eq!(queue.done(&work.batch), None);
    assert!(queue.written(one).await && queue.written(two).await);
    assert_eq!(next.batch.outcome(), None);
    assert_eq!(&*take(&queue).lines, b"d\n");
}

/// Whether the writer would take lines now.
fn is_due(queue: &Queue) -> bool {
    queue.state.lock().is_due
}

#[tokio::test]
async fn the_writer_is_woken_after_the_other_tasks_of_the_thread() {
    let queue = Arc::new(queue(true));
    let call = |line: &'static [u8]| {
        let queue = Arc::clone(&queue);
        tokio::spawn(async move {
            let written = waits(queue.submit(line, 1));
            queue.written(written).await
        })
    };
    let (one, two) = (call(b"a\n"), call(b"b\n"));
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_due(&queue) && Instant::now() < deadline {
        tokio::task::yield_now().await;
    }
    let work = take(&queue);
    assert_eq!(&*work.lines, b"a\nb\n", "both lines are in one batch");
    assert!(!is_due(&queue));
    queue.done(&work.batch);
    assert!(one.await.unwrap() && two.await.unwrap());
}

#[tokio::test]
async fn a_call_that_is_given_up_wakes_the_writer_all_the_same() {
    let queue = queue(true);
    let call = queue.written(waits(queue.submit(b"a\n", 1)));
    let behind = waits(queue.submit(b"b\n", 1));
    assert!(!behind.leads, "one call of a thread wakes the writer");
    let mut call = Box::pin(call);
    let polled = std::future::poll_fn(|context| Poll::Ready(call.as_mut().poll(context)));
    assert!(polled.await.is_pending() && !is_due(&queue));
    drop(call);
    assert!(is_due(&queue));
}

#[test]
fn many_lines_are_written_without_waiting_for_others() {
    let queue = queue(true);
    waits(queue.submit(&vec![b'x'; PLENTY], 1));
    assert!(is_due(&queue));
    take(&queue);
    // A thread that has led a batch that was taken leads the next one.
    assert!(waits(queue.submit(b"a\n", 1)).leads);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| waits(queue.submit(b"b\n", 1)).leads);
        assert!(other.join().unwrap(), "one call of each thread: a thread may hang");
    });
}

#[tokio::test]
async fn a_write_that_fails_ends_the_calls_and_the_next_success_reports_what_is_missing() {
    for refuses in [true, false] {
        let queue = queue(refuses);
        let call = waits(queue.submit(b"a\n", 1));
        let work = take(&queue);
        let behind = waits(queue.submit(b"b\n", 1));
        queue.fail(&work.batch, 1, "no space".to_owned());
        assert_eq!((call.end().await, behind.end().await), (!refuses, !refuses));
        assert_eq!(queue.is_closed(), refuses);
        match queue.submit(b"c\n", 1) {
            Taken::Refused => assert!(refuses),
            Taken::Lost => assert!(!refuses),
            Taken::Waiting(_) => panic!("the log is down"),
        }
        let work = take(&queue);
        assert!(work.lines.is_empty());
        let missing = queue.done(&work.batch).unwrap();
        let expected = if refuses { (0, 3) } else { (3, 0) };
        assert_eq!((missing.lost, missing.refused), expected);
        assert!(!queue.is_closed() && queue.trouble().is_none());
    }
}

#[test]
fn a_line_that_is_offered_is_lost_while_no_line_is_taken() {
    let queue = queue(true);
    queue.fail(&take(&queue).batch, 0, "no space".to_owned());
    assert!(matches!(queue.submit(b"a\n", 1), Taken::Refused));
    assert!(matches!(queue.offer(b"b\nc\n", 2), Taken::Lost));
    let missing = queue.done(&take(&queue).batch).unwrap();
    assert_eq!(missing, Missing { lost: 2, refused: 1 });
    assert!(matches!(queue.offer(b"d\n", 1), Taken::Waiting(_)));
}

#[tokio::test]
async fn a_writer_that_hangs_is_given_up_and_works_again_when_it_returns() {
    let queue = queue(true);
    let call = waits(queue.submit(b"a\n", 1));
    let work = take(&queue);
    let behind = waits(queue.submit(b"b\n", 1));
    let since = queue.state.lock().writing.as_ref().unwrap().0;
    queue.check_at(since + PATIENCE - Duration::from_nanos(1));
    assert!(!queue.is_closed(), "it has time left");
    queue.check_at(since + PATIENCE);
    assert!(queue.is_closed());
    assert_eq!((call.end().await, behind.end().await), (false, false));
    // The line that was in its hands is written, that of the call behind is not.
    let missing = queue.done(&work.batch).unwrap();
    assert_eq!(missing, Missing { lost: 0, refused: 1 });
    assert!(!queue.is_closed());
}

#[test]
fn no_more_than_the_maximum_waits() {
    let queue = queue(false);
    let line = vec![b'x'; 1 << 20];
    for _ in 0..64 {
        waits(queue.submit(&line, 1));
    }
    assert!(matches!(queue.submit(b"x", 1), Taken::Lost));
    assert_eq!(take(&queue).lines.len(), MAX_BYTES);
    waits(queue.submit(b"x", 1));
}
