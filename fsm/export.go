package fsm

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"

	"github.com/settkv/sett/engine"
	"github.com/settkv/sett/kv"
	"github.com/settkv/sett/snapshot"
)

// DigestOf reads a snapshot stream to its end and computes the digest of its newest
// revision from the keys and values in it, and their number: an account of the
// content that owes nothing to the digest that was kept while it was written. Its
// memory grows with the number of values over 64 KiB only.
func DigestOf(r io.Reader) (kv.Digest, uint64, error) {
	c := contentCheck{big: map[string]*bigValue{}}
	sum, err := snapshot.ReadStream(r, nil, func(records []engine.Record) error {
		for i := range records {
			if err := c.record(&records[i]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return kv.Digest{}, 0, fmt.Errorf("digest of a stream: %w", err)
	}
	for _, b := range c.big {
		if [sha256.Size]byte(b.hash.Sum(nil)) != b.rec.valueHash {
			return kv.Digest{}, 0, kv.Errorf(kv.CodeCorruption, "the pieces of a value do not add up to it")
		}
	}
	return c.digest.report(kv.Revision(sum.Header.Label.Revision)), c.keys, nil
}

type bigValue struct {
	rec  *record
	next uint32
	hash hash.Hash
}

type contentCheck struct {
	digest digest
	keys   uint64
	last   string // engine key of the record before
	big    map[string]*bigValue
}

// record takes the next record. A stream has the versions of a key newest first, and
// headers before pieces.
func (c *contentCheck) record(r *engine.Record) error {
	key := string(r.Key)
	if key == c.last {
		return nil
	}
	c.last = key
	if r.Delete || len(key) == 0 {
		return nil
	}
	switch key[0] {
	case prefixData:
		rec, err := decodeRecord(r.Value, r.Version)
		if err != nil {
			return damaged(err, "a key's record cannot be read")
		}
		if rec.loaded {
			if sha256.Sum256(rec.value) != rec.valueHash {
				return kv.Errorf(kv.CodeCorruption, "a value does not match its hash")
			}
			rec.value = nil
		} else {
			c.big[key[1:]] = &bigValue{rec: rec, hash: sha256.New()}
		}
		c.digest.add(key[1:], rec)
		c.keys++
	case prefixPiece:
		if len(key) < 6 {
			return kv.Errorf(kv.CodeCorruption, "a piece has a malformed key")
		}
		b := c.big[key[1:len(key)-4]]
		n := binary.BigEndian.Uint32([]byte(key[len(key)-4:]))
		if b == nil || n != b.next || n >= b.rec.pieces() {
			return kv.Errorf(kv.CodeCorruption, "a piece belongs to no value")
		}
		b.next++
		b.hash.Write(r.Value)
	}
	return nil
}
