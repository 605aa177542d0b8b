# The key that everything is encrypted with, the bucket of the storage tree, and the bucket of its access logs.

locals {
  names = { for o in ["data", "logs"] : o => "${var.name}-${o}-${var.account}-${var.region}" }
  # No kms:*: what the account's own policies may grant, action by action.
  key_policy = {
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "AccountDecides"
        Effect    = "Allow"
        Principal = { AWS = "arn:${var.aws}:iam::${var.account}:root" }
        Action = [
          "kms:CancelKeyDeletion", "kms:CreateAlias", "kms:CreateGrant", "kms:Decrypt", "kms:DeleteAlias", "kms:DescribeKey", "kms:DisableKey", "kms:DisableKeyRotation", "kms:EnableKey",
          "kms:EnableKeyRotation", "kms:Encrypt", "kms:GenerateDataKey", "kms:GenerateDataKeyWithoutPlaintext", "kms:GetKeyPolicy", "kms:GetKeyRotationStatus", "kms:ListGrants",
          "kms:ListKeyPolicies", "kms:ListResourceTags", "kms:PutKeyPolicy", "kms:ReEncryptFrom", "kms:ReEncryptTo", "kms:RetireGrant", "kms:RevokeGrant", "kms:ScheduleKeyDeletion",
          "kms:TagResource", "kms:UntagResource", "kms:UpdateAlias", "kms:UpdateKeyDescription",
        ]
        Resource = "*" # in a key's policy: this key
      },
      {
        Sid       = "LogGroups"
        Effect    = "Allow"
        Principal = { Service = "logs.${var.region}.amazonaws.com" }
        Action    = ["kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKey", "kms:ReEncryptFrom", "kms:ReEncryptTo"]
        Resource  = "*"
        Condition = { ArnLike = { "kms:EncryptionContext:aws:logs:arn" = "arn:${var.aws}:logs:${var.region}:${var.account}:log-group:/${var.name}/*" } }
      },
      {
        Sid       = "Alarms"
        Effect    = "Allow"
        Principal = { Service = "cloudwatch.amazonaws.com" }
        Action    = ["kms:Decrypt", "kms:GenerateDataKey"]
        Resource  = "*"
        Condition = { StringEquals = { "aws:SourceAccount" = var.account } }
      },
    ]
  }
}

resource "aws_kms_key" "this" {
  description             = "${var.name}: storage, disks, images, logs, alarms"
  enable_key_rotation     = true
  deletion_window_in_days = 30
  policy                  = jsonencode(local.key_policy)
}

resource "aws_kms_alias" "this" {
  name          = "alias/${var.name}"
  target_key_id = aws_kms_key.this.key_id
}

module "logs" {
  source = "../bucket"

  name     = local.names.logs
  versions = var.retention.versions
  expire   = var.retention.logs
  protect  = var.protect

  statements = [{
    Sid       = "AccessLogs"
    Effect    = "Allow"
    Principal = { Service = "logging.s3.amazonaws.com" }
    Action    = "s3:PutObject"
    Resource  = "arn:${var.aws}:s3:::${local.names.logs}/data/*"
    Condition = {
      ArnLike      = { "aws:SourceArn" = "arn:${var.aws}:s3:::${local.names.data}" }
      StringEquals = { "aws:SourceAccount" = var.account }
    }
  }]
}

module "data" {
  source = "../bucket"

  name      = local.names.data
  algorithm = "aws:kms"
  key_arn   = aws_kms_key.this.arn
  versions  = var.retention.versions
  cool      = { "storage/runs/" = var.retention.runs }
  protect   = var.protect
}

resource "aws_s3_bucket_logging" "data" {
  bucket        = module.data.id
  target_bucket = module.logs.id
  target_prefix = "data/"
  depends_on    = [module.logs] # its policy, which lets S3 write there
}
