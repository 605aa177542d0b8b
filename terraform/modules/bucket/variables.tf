variable "name" { type = string }
variable "algorithm" {
  description = "AES256 (S3's own keys) or aws:kms (the one of key_arn)."
  type        = string
  default     = "AES256"
}
variable "key_arn" {
  description = "KMS key that objects are encrypted with."
  type        = string
  default     = null
}
variable "versions" {
  description = "Days that former versions stay."
  type        = number
}
variable "expire" {
  description = "Days that objects stay; 0: for ever."
  type        = number
  default     = 0
}
variable "cool" {
  description = "Prefix and days after which objects below it move to infrequent access."
  type        = map(number)
  default     = {}
}
variable "statements" {
  description = "Statements of the bucket's policy besides the one that asks for TLS."
  type        = list(any)
  default     = []
}
variable "protect" { type = bool }
