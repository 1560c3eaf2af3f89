package blackbox

import (
	"bytes"
	"fmt"
	"math/rand/v2"
)

// value makes the bytes of one write: a readable head that names the write, then
// bytes that follow from it. They do not compress, so that sizes on disk are real.
func value(key string, seq uint64, sizeBytes int) []byte {
	var buf bytes.Buffer
	fmt.Fprintf(&buf, "%s#%d;", key, seq)
	if buf.Len() >= sizeBytes {
		return buf.Bytes()
	}
	var seed [32]byte
	copy(seed[:], fmt.Sprintf("%d;%s", seq, key))
	tail := make([]byte, sizeBytes-buf.Len())
	// ChaCha8.Read never fails.
	_, _ = rand.NewChaCha8(seed).Read(tail)
	buf.Write(tail)
	return buf.Bytes()
}

func matchesValue(r *Record, got []byte) bool {
	return bytes.Equal(got, value(r.Key, r.Seq, r.SizeBytes))
}
