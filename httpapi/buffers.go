package httpapi

import "sync"

const (
	// pieceBytes is about how much of an answer that is made bit by bit is sent at once.
	pieceBytes = 64 << 10
	// maxPooledBytes is the biggest buffer that is kept for the next request.
	maxPooledBytes = 1 << 20
)

// bufferPool keeps the buffers in which answers are made.
type bufferPool struct {
	size int // of a new one
	pool sync.Pool
}

// get returns an empty buffer, which may have room.
func (p *bufferPool) get() *[]byte {
	if b, ok := p.pool.Get().(*[]byte); ok {
		*b = (*b)[:0]
		return b
	}
	b := make([]byte, 0, p.size)
	return &b
}

// put gives b back; it must not be used any more.
func (p *bufferPool) put(b *[]byte) {
	if cap(*b) <= maxPooledBytes {
		p.pool.Put(b)
	}
}

// pieces is the body of an answer that is made bit by bit: sent whole and with its
// length if it stays small, else in pieces, so that its size costs no memory. buf is
// appended to; next is called between the bits.
type pieces struct {
	x      *exchange
	status int
	kind   string // content type
	buf    []byte
	begun  bool
	err    error // of the first write that failed: the client is gone
}

// next sends what there is, if it is enough.
func (p *pieces) next() {
	if len(p.buf) >= pieceBytes {
		p.send()
	}
}

func (p *pieces) send() {
	if !p.begun {
		p.begun = true
		p.x.Header().Set("Content-Type", p.kind)
		p.x.WriteHeader(p.status)
	}
	if p.err == nil {
		_, p.err = p.x.Write(p.buf)
	}
	p.buf = p.buf[:0]
}

// end sends the rest.
func (p *pieces) end() error {
	if !p.begun {
		return p.x.writeBytes(p.status, p.kind, p.buf)
	}
	p.send()
	return nil
}
