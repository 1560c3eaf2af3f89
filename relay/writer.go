package relay

import (
	"net"
	"sync"
	"time"
)

// writeTimeout is how long the other side may take to take what is written: one that
// reads nothing for so long is gone.
const writeTimeout = 5 * time.Second

// writer sends the frames of many goroutines over a connection. Whoever finds nobody
// writing writes, for all who come meanwhile too: a busy stream makes few system calls,
// and a quiet one has no goroutine between caller and connection. The buffer is bounded
// by what may be in flight at once.
type writer struct {
	conn net.Conn

	mu      sync.Mutex
	out     []byte // frames that nobody writes yet
	spare   []byte
	writing bool
	err     error // of the first write that failed; nothing is written after it
}

// send has what frame appends written. A nil error promises nothing: writing may fail
// later. With an error nothing of the frame was written.
func (w *writer) send(frame func([]byte) []byte) error {
	w.mu.Lock()
	if w.err != nil {
		w.mu.Unlock()
		return w.err
	}
	w.out = frame(w.out)
	if w.writing {
		w.mu.Unlock()
		return nil
	}
	w.writing = true
	more := w.writeLocked()
	w.mu.Unlock()
	if more {
		// The caller has an answer to wait for.
		go w.writeAll()
	}
	return nil
}

// writeLocked writes what there is. It returns with the lock held and says whether
// more has come; if not, nobody writes.
func (w *writer) writeLocked() (more bool) {
	b := w.out
	w.out, w.spare = w.spare[:0], nil
	w.mu.Unlock()
	err := w.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if err == nil {
		_, err = w.conn.Write(b)
	}
	w.mu.Lock()
	if cap(b) <= 2*maxAnswerBytes {
		w.spare = b[:0]
	}
	if err != nil {
		w.err = err
		w.out = nil
		_ = w.conn.Close() // whoever reads from it ends the stream
	}
	w.writing = err == nil && len(w.out) > 0
	return w.writing
}

func (w *writer) writeAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.writeLocked() {
	}
}
