package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/settkv/sett/kv"
)

// ExportResult is what an export holds.
type ExportResult struct {
	Count    uint64
	Revision kv.Revision
}

// Export writes all keys with that prefix to w, at one revision and in constant memory:
// a line with "begin", a JSON form a line, and a line with "end" that counts them. An
// export without its end is not whole, and Import refuses it. ctx is as for Scan.
func (c *Client) Export(ctx context.Context, w io.Writer, prefix string, o kv.ReadOptions) (ExportResult, error) {
	s, err := c.Scan(ctx, kv.PrefixRange(prefix), ScanOptions{ReadOptions: o})
	if err != nil {
		return ExportResult{}, err
	}
	defer s.Close()
	begin := exportBegin{Begin: true, Revision: s.Revision()}
	begin.Prefix, begin.PrefixBase64 = textOrBytes(prefix)
	if err := writeLine(w, begin); err != nil {
		return ExportResult{}, err
	}
	for s.nextLine(ctx) {
		if _, err := w.Write(append(s.line, '\n')); err != nil {
			return ExportResult{}, fmt.Errorf("write the export: %w", err)
		}
	}
	if s.Err() != nil {
		return ExportResult{}, s.Err()
	}
	res := ExportResult{Count: s.Count(), Revision: s.Revision()}
	return res, writeLine(w, exportEnd{End: true, Count: &res.Count, Revision: res.Revision})
}

// exportBegin is the first line of an export.
type exportBegin struct {
	Begin        bool        `json:"begin"`
	Revision     kv.Revision `json:"revision"`
	Prefix       *string     `json:"prefix,omitempty"`
	PrefixBase64 []byte      `json:"prefix_base64,omitempty"`
}

// exportEnd is the last line of an export.
type exportEnd struct {
	End      bool        `json:"end"`
	Count    *uint64     `json:"count,omitempty"`
	Revision kv.Revision `json:"revision"`
}

func writeLine(w io.Writer, v any) error {
	data, err := json.Marshal(v)
	if err == nil {
		_, err = w.Write(append(data, '\n'))
	}
	if err != nil {
		return fmt.Errorf("write the export: %w", err)
	}
	return nil
}

// edgeBytes is how much of either side of an export is looked at: more than its first or
// its last line has.
const edgeBytes = 64 << 10

// errNoEnd is for an export that was cut off.
func errNoEnd() *kv.Error {
	return kv.Errorf(kv.CodeCorruption, "the export has a beginning and no end, so it is not whole: make it again, or load what there is with --partial")
}

// CheckExport looks at both sides of a file of that size and returns an error of code
// kv.CodeCorruption if it is an export without its end. It reads little of it.
func CheckExport(f io.ReaderAt, size int64) error {
	head, err := readAt(f, 0, min(size, edgeBytes))
	if err != nil {
		return err
	}
	if !begins(head) {
		return nil
	}
	tail, err := readAt(f, max(0, size-edgeBytes), min(size, edgeBytes))
	if err != nil {
		return err
	}
	if !ends(tail) {
		return errNoEnd()
	}
	return nil
}

func readAt(f io.ReaderAt, at, n int64) ([]byte, error) {
	b := make([]byte, n)
	if _, err := f.ReadAt(b, at); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read the export: %w", err)
	}
	return b, nil
}

// begins reports whether the first line is that of an export.
func begins(head []byte) bool {
	line, _, _ := bytes.Cut(head, []byte{'\n'})
	var b exportBegin
	return json.Unmarshal(line, &b) == nil && b.Begin
}

// ends reports whether the last line is the end of an export.
func ends(tail []byte) bool {
	tail = bytes.TrimSpace(tail)
	line := tail[bytes.LastIndexByte(tail, '\n')+1:]
	var e exportEnd
	return json.Unmarshal(line, &e) == nil && e.End
}

// edges passes an export on and keeps both of its sides.
type edges struct {
	r          io.Reader
	head, tail []byte
}

func (e *edges) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	if room := edgeBytes - len(e.head); room > 0 {
		e.head = append(e.head, p[:min(n, room)]...)
	}
	e.tail = append(e.tail, p[max(0, n-edgeBytes):n]...)
	if len(e.tail) > 8*edgeBytes {
		e.tail = append(e.tail[:0], e.tail[len(e.tail)-edgeBytes:]...)
	}
	return n, err
}

func (e *edges) whole() bool { return !begins(e.head) || ends(e.tail) }

// whatIsWhole passes on the lines that were written whole, and not the one that says
// that the export failed.
type whatIsWhole struct {
	lines lineReader
	// rest is what is left of buf, the line at hand.
	rest, buf []byte
	err       error
}

// Read fills p: what comes in small pieces is applied in small batches.
func (w *whatIsWhole) Read(p []byte) (n int, err error) {
	for n < len(p) && (len(w.rest) > 0 || w.err == nil) {
		if len(w.rest) == 0 {
			w.line()
		}
		m := copy(p[n:], w.rest)
		w.rest = w.rest[m:]
		n += m
	}
	if n == 0 {
		return 0, w.err
	}
	return n, nil
}

// line reads the next line into rest, or nothing if it is not to be passed on.
func (w *whatIsWhole) line() {
	line, err := w.lines.next()
	if w.err = err; err != nil && (!errors.Is(err, io.EOF) || !json.Valid(line)) {
		return
	}
	if !bytes.HasPrefix(line, []byte(`{"error":`)) {
		w.buf = append(append(w.buf[:0], line...), '\n')
		w.rest = w.buf
	}
}

// ImportOptions say what an import takes.
type ImportOptions struct {
	// Partial takes an export that was cut off as far as it goes.
	Partial bool
}

// Import loads lines as Load does. An export, which begins with a line that says so, has
// to have its end; if it does not, the lines before were loaded by the time that this is
// known, the error has the code kv.CodeCorruption and says how many. CheckExport tells
// before.
func (c *Client) Import(ctx context.Context, r io.Reader, o ImportOptions) (LoadResult, error) {
	if o.Partial {
		return c.Load(ctx, &whatIsWhole{lines: newLineReader(r)})
	}
	e := &edges{r: r}
	res, err := c.Load(ctx, e)
	if err == nil && !e.whole() {
		bad := errNoEnd()
		bad.Msg = fmt.Sprintf("%d keys were loaded, and then the input ended: %s", res.Applied, bad.Msg)
		bad.Applied = res.Applied
		return res, bad
	}
	return res, err
}
