package httpapi

import (
	"encoding/base64"
	"encoding/binary"

	"github.com/settkv/sett/kv"
)

// A cursor is what is left of a listing, so that any node can go on with it and none
// has to remember it:
//
//	version (1 byte) | revision (8, big endian) | bound | tag (8)
//
// in base64url. The bound is the start of what is left of the range, or the end of it
// for a reverse listing. The tag is a hash over the listing and the rest, so that a
// cursor of another listing, or one that was changed on its way, is noticed. It is no
// secret: whoever forges a cursor gets what a query of his own would have got.
const (
	cursorVersion  = 1
	cursorHead     = 1 + 8
	cursorTagBytes = 8
	maxCursorBytes = (cursorHead+kv.MaxKeyBytesBound+1+cursorTagBytes)*4/3 + 1
)

// encodeCursor returns the cursor of rest, which is l.scan narrowed.
func encodeCursor(l *listing, rev kv.Revision, rest kv.Scan) string {
	bound := rest.Range.Start
	if rest.Reverse {
		bound = rest.Range.End
	}
	b := make([]byte, 0, cursorHead+len(bound)+cursorTagBytes)
	b = append(b, cursorVersion)
	b = binary.BigEndian.AppendUint64(b, uint64(rev))
	b = append(b, bound...)
	tag := cursorTag(l, b)
	return base64.RawURLEncoding.EncodeToString(append(b, tag[:]...))
}

// decodeCursor reads a cursor of l: the revision of the listing, and what is left of it.
func decodeCursor(l *listing, text string) (rev kv.Revision, rest kv.Scan, err error) {
	bad := badParam("after", "it is no cursor of this listing; give next of the last page as it is, and the other parameters as they were")
	if len(text) > maxCursorBytes {
		return 0, rest, bad
	}
	b, decodeErr := base64.RawURLEncoding.DecodeString(text)
	if decodeErr != nil || len(b) < cursorHead+cursorTagBytes || b[0] != cursorVersion ||
		base64.RawURLEncoding.EncodeToString(b) != text { // one cursor has one text
		return 0, rest, bad
	}
	head, tag := b[:len(b)-cursorTagBytes], b[len(b)-cursorTagBytes:]
	if cursorTag(l, head) != [cursorTagBytes]byte(tag) {
		return 0, rest, bad
	}
	rev = kv.Revision(binary.BigEndian.Uint64(head[1:]))
	bound := string(head[cursorHead:])
	rest = l.scan
	if rest.Reverse {
		if bound == "" || (rest.Range.End != "" && bound > rest.Range.End) {
			return 0, rest, bad
		}
		rest.Range.End = bound
	} else {
		if bound < rest.Range.Start {
			return 0, rest, bad
		}
		rest.Range.Start = bound
	}
	if rev == 0 || rest.Range.Empty() {
		return 0, rest, bad
	}
	return rev, rest, nil
}

// cursorTag binds a cursor to all of its listing that decides what comes next.
func cursorTag(l *listing, head []byte) [cursorTagBytes]byte {
	flags := [3]byte{}
	for i, on := range []bool{l.scan.Reverse, l.scan.KeysOnly, l.countOnly} {
		if on {
			flags[i] = 1
		}
	}
	r := l.scan.Range
	sum := digest([]byte("cursor"), []byte(r.Start), []byte(r.End), []byte(l.scan.Prefix), []byte(l.scan.Delimiter), flags[:], head)
	return [cursorTagBytes]byte(sum[:])
}
