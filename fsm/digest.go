package fsm

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"

	"github.com/settkv/sett/kv"
)

// The digest is a set hash of all keys, kept up to date with each change: LtHash
// (Lewi, Kim, Maykov, Weis: "Securing Update Propagation with Homomorphic Hashing",
// 2019) with 1024 lanes of 16 bits. An element is first hashed with SHA-256 over
// length-prefixed fields; the result keys AES-256 in counter mode, whose key stream
// is the element's vector. The hash of a set is the lane-wise sum of its elements'
// vectors, so adding and taking out an element cost the same whatever the set's
// size, and the order does not matter.
const (
	laneWords   = 1024 * 2 / 8 // 64-bit words of four lanes
	vectorBytes = laneWords * 8
	digestBytes = 2 * vectorBytes

	// checkpointChanges is how many changes go by before a change-index record
	// carries the whole digest again. It bounds what a start has to replay.
	checkpointChanges = 1024
)

// setHash is one LtHash state: four 16-bit lanes in each word.
type setHash [laneWords]uint64

const (
	laneMask = 0x7fff7fff7fff7fff
	laneHigh = 0x8000800080008000
)

var zeroVector [vectorBytes]byte

// vector expands an element into buf.
func vector(element *[sha256.Size]byte, buf *[vectorBytes]byte) {
	block, err := aes.NewCipher(element[:])
	if err != nil {
		panic(err) // the key length is fixed
	}
	var iv [aes.BlockSize]byte
	cipher.NewCTR(block, iv[:]).XORKeyStream(buf[:], zeroVector[:])
}

func (h *setHash) add(element *[sha256.Size]byte, buf *[vectorBytes]byte) {
	vector(element, buf)
	for i := range h {
		x, y := h[i], binary.LittleEndian.Uint64(buf[i*8:])
		// Lane-wise addition modulo 2^16: the carry out of each lane is dropped.
		h[i] = ((x & laneMask) + (y & laneMask)) ^ ((x ^ y) & laneHigh)
	}
}

func (h *setHash) remove(element *[sha256.Size]byte, buf *[vectorBytes]byte) {
	vector(element, buf)
	for i := range h {
		x, y := h[i], binary.LittleEndian.Uint64(buf[i*8:])
		h[i] = ((x | laneHigh) - (y & laneMask)) ^ ((x ^ ^y) & laneHigh)
	}
}

func (h *setHash) sum() string {
	b := make([]byte, 0, vectorBytes)
	for _, w := range h {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// digest is the pair of set hashes: full covers every attribute, content only key,
// value, content type and expiry.
type digest struct {
	full, content setHash
	buf           [vectorBytes]byte
}

// add puts a key's state into the digest; remove takes it out.
func (g *digest) add(key string, r *record) {
	c := contentElement(key, r)
	f := fullElement(&c, r)
	g.content.add(&c, &g.buf)
	g.full.add(&f, &g.buf)
}

func (g *digest) remove(key string, r *record) {
	c := contentElement(key, r)
	f := fullElement(&c, r)
	g.content.remove(&c, &g.buf)
	g.full.remove(&f, &g.buf)
}

func (g *digest) append(b []byte) []byte {
	for _, h := range []*setHash{&g.full, &g.content} {
		for _, w := range h {
			b = binary.LittleEndian.AppendUint64(b, w)
		}
	}
	return b
}

func (g *digest) decode(b []byte) bool {
	if len(b) < digestBytes {
		return false
	}
	for i := range g.full {
		g.full[i] = binary.LittleEndian.Uint64(b[i*8:])
		g.content[i] = binary.LittleEndian.Uint64(b[vectorBytes+i*8:])
	}
	return true
}

// equal compares the states.
func (g *digest) equal(o *digest) bool { return g.full == o.full && g.content == o.content }

func (g *digest) report(rev kv.Revision) kv.Digest {
	return kv.Digest{Revision: rev, Hash: g.full.sum(), ContentHash: g.content.sum()}
}

func contentElement(key string, r *record) [sha256.Size]byte {
	e := encoder{b: make([]byte, 0, 128+len(key)+len(r.contentType))}
	e.string("sett content 1")
	e.string(key)
	e.uvarint(r.size)
	e.b = append(e.b, r.valueHash[:]...)
	e.string(r.contentType)
	e.uvarint(r.expires)
	return sha256.Sum256(e.b)
}

func fullElement(content *[sha256.Size]byte, r *record) [sha256.Size]byte {
	e := encoder{b: make([]byte, 0, 128)}
	e.string("sett full 1")
	e.b = append(e.b, content[:]...)
	e.uvarint(uint64(r.create))
	e.uvarint(uint64(r.mod))
	e.uvarint(r.version)
	return sha256.Sum256(e.b)
}
