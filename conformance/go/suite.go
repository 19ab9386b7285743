//go:build suite

package main

// What the client's own tests need besides the client: named here, so that go.mod and go.sum hold
// them and its tests run where the Go client put them.
import (
	_ "github.com/stretchr/testify/assert"
	_ "gopkg.in/h2non/gock.v1"
)
