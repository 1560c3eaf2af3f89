package client

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/settkv/sett/kv"
)

const (
	lineBufferBytes = 64 << 10
	// maxLineBytes bounds a line: more than the JSON form of any key.
	maxLineBytes = maxBodyBytes
)

// lineStream is an answer of lines. It is for one goroutine.
type lineStream struct {
	// index is that of the endpoint.
	index    int
	endpoint string
	lines    lineReader
	body     io.Closer
	cancel   context.CancelFunc
	once     sync.Once
}

// next returns the next line without its end, valid until the following call. It is
// io.EOF where the stream ends well; whether that was its end the lines have to tell.
// A stream that says nothing for as long as idle is broken off, and so is one whose ctx
// ends.
func (s *lineStream) next(ctx context.Context, idle time.Duration) ([]byte, error) {
	if line, ok := s.lines.buffered(); ok {
		return line, ctx.Err()
	}
	unhook := context.AfterFunc(ctx, s.cancel)
	defer unhook()
	timer := time.AfterFunc(idle, s.cancel)
	defer timer.Stop()
	line, err := s.lines.next()
	if err != nil && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return line, err
}

// close ends the stream. What was not read of it is lost.
func (s *lineStream) close() {
	s.once.Do(func() {
		s.cancel()
		_ = s.body.Close() // there is nothing left to lose
	})
}

// broken is the error of a stream that ended early.
func (s *lineStream) broken(err error) *kv.Error {
	var e *kv.Error
	if errors.As(err, &e) {
		return e
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	out := kv.Errorf(kv.CodeNotReady, "%s broke off: %v: try again", s.endpoint, reason(err))
	out.Err = err
	return out
}

// lineReader cuts a stream into lines, in memory bounded by the longest of them.
type lineReader struct {
	r *bufio.Reader
	// long holds a line that does not fit r.
	long []byte
}

func newLineReader(r io.Reader) lineReader {
	return lineReader{r: bufio.NewReaderSize(r, lineBufferBytes)}
}

// buffered returns the next line if it has arrived whole.
func (l *lineReader) buffered() ([]byte, bool) {
	have, _ := l.r.Peek(l.r.Buffered()) // never fails: it asks for what is there
	i := bytes.IndexByte(have, '\n')
	if i < 0 {
		return nil, false
	}
	_, _ = l.r.Discard(i + 1)
	return have[:i], true
}

// next returns the next line without its end. What is not ended by a line feed is no
// line: it comes with an error, io.EOF if the stream ended there.
func (l *lineReader) next() ([]byte, error) {
	if cap(l.long) > 1<<20 {
		l.long = nil
	}
	l.long = l.long[:0]
	for {
		part, err := l.r.ReadSlice('\n')
		switch {
		case err == nil && len(l.long) == 0:
			return part[:len(part)-1], nil
		case err == nil:
			l.long = append(l.long, part[:len(part)-1]...)
			return l.long, nil
		}
		if len(l.long)+len(part) > maxLineBytes {
			return nil, kv.Errorf(kv.CodeTooLarge, "a line is longer than %d bytes", maxLineBytes)
		}
		l.long = append(l.long, part...)
		if !errors.Is(err, bufio.ErrBufferFull) {
			return l.long, err
		}
	}
}

// open starts a stream. ctx bounds the start; Config.Timeout, if it has no deadline.
func (c *Client) open(ctx context.Context, r request) (*answer, error) {
	r.stream = true
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	return c.do(ctx, r)
}
